"""Remove a cluster left running on Ray by `preble serve --ray --detach`.

Running requests are cut off. A cluster in the foreground is ended by Ctrl-C instead.

[bold]Examples[/]

  preble down
  preble down --ray 10.0.0.2:6379 --name chat
"""

from collections.abc import Callable

import typer

from preble.errors import PrebleError
from preble_deploy import options
from preble_deploy.client_settings import DownSettings


def run(settings: DownSettings) -> int:
    """Kills the cluster's actors."""
    from preble_deploy.ray_cluster import remove
    from preble_deploy.ray_connection import connect_existing

    ray = connect_existing(settings.ray, namespace=settings.ray_namespace)
    removed = remove(ray, cluster=settings.name, namespace=settings.ray_namespace)
    if not removed:
        raise PrebleError(
            f"no cluster named {settings.name!r} runs in Ray namespace {settings.ray_namespace!r}"
        )
    typer.echo(f"preble: removed {removed} actors of {settings.name}")
    return 0


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(DownSettings, run)
