"""Run a router in the foreground: the HTTP gateway and gRPC services in front of the workers.

Workers announce themselves to its gRPC port, or are named by --worker-urls. SIGTERM and Ctrl-C
let running requests end first, within --drain-seconds.

[bold]Examples[/]

  preble router meta-llama/Llama-3.1-8B-Instruct --host 0.0.0.0 --port 8000
  preble router demo --worker-urls 10.0.0.5:7000,10.0.0.6:7000 --policy e2
  PREBLE_API_KEY=secret preble router --config cluster.yaml
"""

from collections.abc import Callable

from preble_deploy import options
from preble_deploy.lifeline import end_with_parent
from preble_deploy.models import resolve_model
from preble_deploy.settings import RouterSettings


def run(settings: RouterSettings) -> int:
    """Serves until told to stop."""
    end_with_parent()
    from preble_router.server import run as serve

    serve(settings.router_config(resolve_model(settings.model)))
    return 0


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(RouterSettings, run)
