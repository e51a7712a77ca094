"""Empty a worker and end it: it is given nothing more, and what runs on it goes on to its end.

What has not ended by the deadline goes on on other workers from where it is; no client notices. The
command returns at once unless --wait is given; `preble status --watch 1` shows the worker until it
has ended.

[bold]Examples[/]

  preble drain gpu-3
  preble drain gpu-3 --deadline 25     # the machine goes away in thirty seconds
  preble drain gpu-3 --wait            # returns when it has ended, for scripts and upgrades
"""

import json
import time
from collections.abc import Callable

import typer

from preble.client import Client
from preble.types import WorkerState
from preble_deploy import options
from preble_deploy.client_settings import DrainSettings
from preble_deploy.connect import connected

POLL_SECONDS = 0.3


def run(settings: DrainSettings) -> int:
    """Tells the router, and says what will happen."""
    deadline = settings.deadline
    with connected(settings) as client:
        epoch = _epoch(client, settings.worker)
        client.drain_worker(settings.worker, deadline_seconds=deadline)
        # A worker that a supervisor starts again under its name is another one, with a new epoch.
        while settings.wait and epoch is not None and _epoch(client, settings.worker) == epoch:
            time.sleep(POLL_SECONDS)
    if settings.json_output:
        typer.echo(json.dumps({"worker_id": settings.worker, "deadline_seconds": deadline}))
        return 0
    if settings.wait:
        typer.echo(f"preble: {settings.worker} has ended")
        return 0
    after = "its own drain time" if deadline is None else f"{deadline:g} s"
    typer.echo(
        f"preble: {settings.worker} drains; what still runs there after {after} goes on elsewhere"
    )
    return 0


def _epoch(client: Client, worker_id: str) -> int | None:
    """Of that worker while the router has a link to it."""
    for worker in client.cluster().workers:
        linked = worker.condition is not WorkerState.UNREACHABLE
        if linked and worker.spec is not None and worker.spec.worker_id == worker_id:
            return worker.spec.epoch
    return None


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(DrainSettings, run)
