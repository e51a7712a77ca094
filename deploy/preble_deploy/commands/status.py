"""Show the workers of a running cluster: state, load, cache, and how well the router knows them.

Columns: requests running and waiting; share of the KV cache in use by them; pages of the worker's
cache in the router's tree; requests placed by this router; share of prompt tokens served from
cache; by how much the router's predictions of that were off; observed over predicted step time.

Asks the router's gRPC port, which is 8001 unless `serve` or `router` was told otherwise.

[bold]Examples[/]

  preble status
  preble status --router 10.0.0.2:8001 --api-key secret --watch 2
  preble status --json | jq .workers[].held_pages
"""

import dataclasses
import json
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from preble.client import Client
from preble.results import ClusterState, ClusterWorker
from preble_deploy import options
from preble_deploy.client_settings import StatusSettings
from preble_deploy.connect import connected, plain
from preble_loadgen.wide_console import wide_console


def run(settings: StatusSettings) -> int:
    """Prints once, or until Ctrl-C."""
    with connected(settings) as client:
        while True:
            _show(client, settings)
            if not settings.watch:
                return 0
            time.sleep(settings.watch)


def _show(client: Client, settings: StatusSettings) -> None:
    state = client.cluster()
    if settings.json_output:
        print(json.dumps(plain(dataclasses.asdict(state))), flush=True)  # noqa: T201
        return
    console = wide_console()
    if settings.watch and console.is_terminal:
        console.clear()
    _print_table(state, console)


def _print_table(state: ClusterState, console: Console) -> None:
    console.print(
        f"router {state.router_id}, version {state.version}, policy {state.policy}, up "
        f"{state.uptime_seconds:.0f} s, {state.live_requests} live requests, tree of "
        f"{state.tree.nodes} nodes and {state.tree.pages} pages ({state.tree.held_pages} held), "
        f"digest {state.tree.digest or '-'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("worker", "address", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("run", "wait", "KV", "pages", "placed", "hits", "error", "speed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for worker in state.workers:
        table.add_row(*_row(worker))
    console.print(table, soft_wrap=True)
    if not state.workers:
        console.print("no workers: start one with `preble worker --router HOST:GRPC_PORT`")


def _row(worker: ClusterWorker) -> tuple[str, ...]:
    load = worker.load
    pages = load.free_pages + load.cached_pages + load.used_pages
    return (
        worker.spec.worker_id if worker.spec else "-",
        worker.address,
        str(worker.condition),
        str(load.num_running),
        str(load.num_waiting),
        _share(load.used_pages, pages),
        str(worker.held_pages),
        str(worker.placed_requests_total),
        _share(load.cached_tokens_total, load.prompt_tokens_total),
        _error(worker.predicted_cached_tokens_total, worker.actual_cached_tokens_total),
        f"{worker.speed_ratio:.2f}",
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _error(predicted: int, actual: int) -> str:
    """By how much the router's belief about cached tokens is off, of what was cached."""
    return f"{(predicted - actual) / actual:+.1%}" if actual else "-"


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(StatusSettings, run)
