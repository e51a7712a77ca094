"""Show on this machine, in two minutes, what routing by prefixes is worth.

For each policy it brings up a router and workers, as processes of their own on the real wire, whose
engines sleep as long as a GPU would compute; sends all of them the same requests, tools described
in long prompts that many requests share; and prints the figures side by side. No GPU and no
download.

[bold]Examples[/]

  preble demo
  preble demo --policy preble --policy cache_aware --policy kv_cost --seconds 60
  preble demo --workload programming --rate 4 --html programming.html
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from preble.errors import ConfigError
from preble_deploy import options
from preble_deploy.demo_settings import DemoSettings

if TYPE_CHECKING:
    from rich.console import Console

    from preble_deploy.local import LocalCluster
    from preble_loadgen.demo import Shown
    from preble_loadgen.traces import Trace

CONTEXT_TOKENS = 8192
STARTUP_SECONDS = 120.0


def run(settings: DemoSettings) -> int:
    """Runs it, and returns the exit status: 1 if a request failed."""
    from rich.console import Console

    from preble.cost_library import kv_capacity_tokens
    from preble_loadgen.demo import print_comparison, write_page
    from preble_loadgen.wide_console import wide_console

    if not settings.html.absolute().parent.is_dir():
        raise ConfigError(f"{settings.html.parent} is no directory")
    kv_capacity_tokens(settings.cost_model)
    trace, console = _trace(settings), Console(stderr=True, highlight=False)
    console.print(
        f"{len(trace.requests)} requests of {trace.name} at {settings.rate:g} per second on "
        f"{settings.workers} workers, engines as {settings.cost_model}",
        soft_wrap=True,
    )
    shown = [asyncio.run(_shown(settings, policy, trace, console)) for policy in settings.policy]
    write_page(settings.html, shown, about=_about(settings, trace))
    print_comparison(wide_console(), shown)
    console.print(f"report with plots: {settings.html.absolute()}", soft_wrap=True)
    return 1 if any(one.report.num_failed for one in shown) else 0


def _trace(settings: DemoSettings) -> "Trace":
    from preble_loadgen.workloads import WorkloadOptions, make_workload

    workload = WorkloadOptions(
        requests=max(1, round(settings.seconds * settings.rate)),
        rate=settings.rate,
        workers=settings.workers,
        seed=settings.seed,
    )
    return make_workload(settings.workload, workload).fitted(CONTEXT_TOKENS)


async def _shown(
    settings: DemoSettings, policy: str, trace: "Trace", console: "Console"
) -> "Shown":
    from preble_deploy.cluster import until_ready
    from preble_loadgen.demo import observed
    from preble_loadgen.replay_options import ReplayOptions

    console.print(f"{policy}: starting {settings.workers} workers and a router")
    cluster = _cluster(settings, policy)
    try:
        await cluster.start()
        await until_ready(cluster, seconds=STARTUP_SECONDS)
        replayed = ReplayOptions(
            trace=Path(settings.workload),
            url=f"grpc://{cluster.grpc_address}",
            seed=settings.seed,
        )
        return await observed(policy, replayed, trace, console=console)
    finally:
        await cluster.kill()


def _cluster(settings: DemoSettings, policy: str) -> "LocalCluster":
    from preble.cost_library import kv_capacity_tokens
    from preble_deploy.local import LocalCluster
    from preble_deploy.models import resolve_model
    from preble_deploy.settings import ServeSettings

    serving = ServeSettings.model_validate(
        {
            "model": "demo",
            "engine": "simulated",
            "workers": settings.workers,
            "policy": policy,
            "cost_model": settings.cost_model,
            "kv_cache_tokens": kv_capacity_tokens(settings.cost_model),
            "max_model_len": CONTEXT_TOKENS,
            "seed": settings.seed,
            "port": 0,
            "log_level": "warning",
        }
    )
    return LocalCluster(serving, resolve_model(serving.model))


def _about(settings: DemoSettings, trace: "Trace") -> dict[str, str]:
    return {
        "workload": f"{len(trace.requests)} requests of {trace.name}, {settings.rate:g} per second",
        "workers": f"{settings.workers}, simulated engines as {settings.cost_model}",
        "seed": str(settings.seed),
    }


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(DemoSettings, run)
