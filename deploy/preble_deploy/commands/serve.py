"""Bring up a router and its workers, wait until they serve, and print how to use them.

Without --ray everything runs on this machine as subprocesses of this command: a process that
crashes is started again, Ctrl-C lets running requests end (a second one does not), and nothing
stays behind, even if this command is killed. With --ray the same processes are actors of a Ray
cluster, on whose nodes Preble must be installed; --detach leaves them running and
`preble down` removes them.

[bold]Examples[/]

  preble serve
  preble serve demo --workers 2 --port 9000
  preble serve Qwen/Qwen3-8B --host 0.0.0.0 --api-key secret --max-model-len 16384
  preble serve demo --workers 64 --engine simulated --kv-cache-tokens 400000
  preble serve demo --workers 8 --ray 10.0.0.2:6379 --detach
"""

import asyncio
from collections.abc import Callable

from preble_deploy import options
from preble_deploy.settings import ServeSettings


def run(settings: ServeSettings) -> int:
    """Serves until Ctrl-C."""
    from preble_deploy.cluster import Cluster, serve_in_foreground
    from preble_deploy.models import resolve_model

    model_path = resolve_model(settings.model)
    cluster: Cluster
    if settings.ray is None:
        from preble_deploy.local import LocalCluster

        cluster = LocalCluster(settings, model_path)
    else:
        from preble_deploy.ray_cluster import RayCluster

        cluster = RayCluster(settings, model_path)
    return asyncio.run(serve_in_foreground(cluster, settings, model_path))


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(ServeSettings, run)
