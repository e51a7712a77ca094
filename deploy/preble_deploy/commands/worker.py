"""Run a worker in the foreground: one engine and its KV cache.

It announces itself to the routers named by --router and does so again whenever one of them has
lost it. SIGTERM and Ctrl-C let running requests end first, within --drain-seconds.

[bold]Examples[/]

  preble worker demo --router 127.0.0.1:8001
  preble worker Qwen/Qwen3-8B --device cuda:0 --host 10.0.0.5 --port 7000 --router 10.0.0.2:8001
  preble worker demo --engine simulated --kv-cache-tokens 400000 --router 127.0.0.1:8001
"""

from collections.abc import Callable

from preble_deploy import options
from preble_deploy.lifeline import end_with_parent
from preble_deploy.models import resolve_model
from preble_deploy.settings import WorkerSettings


def run(settings: WorkerSettings) -> int:
    """Serves until told to stop."""
    end_with_parent()
    from preble_worker.server import run as serve

    serve(settings.config_of(resolve_model(settings.model)))
    return 0


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(WorkerSettings, run)
