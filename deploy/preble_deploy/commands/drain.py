"""Empty a worker and end it: it is given nothing more, and what runs on it goes on to its end.

What has not ended by the deadline goes on on other workers from where it is; no client notices. The
command returns at once; `preble status --watch 1` shows the worker until it has ended.

[bold]Examples[/]

  preble drain gpu-3
  preble drain gpu-3 --deadline 25     # the machine goes away in thirty seconds
"""

import json
from collections.abc import Callable

import typer

from preble_deploy import options
from preble_deploy.client_settings import DrainSettings
from preble_deploy.connect import connected


def run(settings: DrainSettings) -> int:
    """Tells the router, and says what will happen."""
    deadline = settings.deadline
    with connected(settings) as client:
        client.drain_worker(settings.worker, deadline_seconds=deadline)
    if settings.json_output:
        typer.echo(json.dumps({"worker_id": settings.worker, "deadline_seconds": deadline}))
        return 0
    after = "its own drain time" if deadline is None else f"{deadline:g} s"
    typer.echo(
        f"preble: {settings.worker} drains; what still runs there after {after} goes on elsewhere"
    )
    return 0


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(DrainSettings, run)
