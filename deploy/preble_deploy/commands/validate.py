"""Hold the simulator against real workers: one trace, live and simulated, side by side.

Brings up a router and torch workers on this machine's CPU, sends them a workload over gRPC, ends
them, and simulates the same requests with a measured cost model. The first third of them is a
rehearsal, which tells two numbers that the simulator does not compute: how much longer a token
takes than its step (the worker's loop, and processes that want the same cores), and how much longer
the first one (client, gRPC, router). The rest is compared, and nothing is fitted to it. Prints mean
TTFT and end-to-end time, which should agree within 15 %, the cached share, within one point, and
the time in steps, which tells an error of the cost model from one of the queues. Exit status: 0 if
all agree, 1 if not. Nothing else should run meanwhile.

[bold]Examples[/]

  preble validate
  preble validate --workers 2 --rate 4 --workload programming --out validation.md
  preble validate mine.json --model ./my-model --requests 100
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from preble.errors import ConfigError
from preble_deploy import options
from preble_deploy.validate_settings import ValidateSettings

if TYPE_CHECKING:
    from preble_deploy.local import LocalCluster
    from preble_loadgen.simulator import SimulationOptions
    from preble_loadgen.traces import Trace
    from preble_loadgen.validation import Validation

STARTUP_SECONDS = 120.0
REQUESTS_PER_PREFIX = 45
"""So many that all copies are made during the rehearsal, or soon after: which worker makes one can
hang on a millisecond, and each moves the cached share."""


def run(settings: ValidateSettings) -> int:
    """Compares, and returns the exit status."""
    from preble.cost_library import load_cost_model
    from preble_loadgen.validation import rehearsal_length
    from preble_loadgen.validation_text import agrees, as_markdown

    if settings.out is not None and not settings.out.absolute().parent.is_dir():
        raise ConfigError(f"{settings.out.parent} is no directory")
    load_cost_model(settings.cost_model)
    trace = _trace(settings)
    rehearsal_length(len(trace.requests))
    validation = asyncio.run(_validate(settings, trace))
    table = as_markdown(validation)
    notes = _notes(settings, trace, validation)
    Console().print(f"{table}\n\n{notes}", highlight=False, soft_wrap=True, markup=False)
    if settings.out is not None:
        settings.out.write_text(f"{table}\n\n{notes}\n", encoding="utf-8")
    return 0 if agrees(validation) else 1


def _trace(settings: ValidateSettings) -> "Trace":
    from preble_loadgen.traces import load_trace
    from preble_loadgen.workloads import WorkloadOptions, make_workload

    if settings.trace is not None:
        trace = load_trace(settings.trace, limit=settings.requests)
    else:
        options = WorkloadOptions(
            requests=settings.requests,
            prefixes=max(1, settings.requests // REQUESTS_PER_PREFIX),
            workers=settings.workers,
            seed=settings.seed,
        )
        trace = make_workload(settings.workload, options)
    return trace.fitted(settings.max_context)


async def _validate(settings: ValidateSettings, trace: "Trace") -> "Validation":
    from preble_deploy.cluster import until_ready
    from preble_loadgen.replay_options import ReplayOptions
    from preble_loadgen.validation import validate

    cluster = _live(settings)
    try:
        await cluster.start()
        await until_ready(cluster, seconds=STARTUP_SECONDS)
        return await validate(
            ReplayOptions(
                trace=settings.trace or Path(settings.workload),
                url=f"grpc://{cluster.grpc_address}",
                rate=settings.rate,
                seed=settings.seed,
            ),
            trace,
            _simulated(settings),
            grpc_address=cluster.grpc_address,
        )
    finally:
        await cluster.kill()


def _live(settings: ValidateSettings) -> "LocalCluster":
    from preble_deploy.local import LocalCluster
    from preble_deploy.models import resolve_model
    from preble_deploy.settings import ServeSettings

    shared = (
        *("model", "workers", "threads", "policy", "local_policy", "kv_cache_tokens", "seed"),
        *("max_num_batched_tokens", "max_num_seqs", "cost_model"),
    )
    serving = ServeSettings.model_validate(
        {name: getattr(settings, name) for name in shared}
        | {"port": 0, "device": "cpu", "log_level": "warning"}
    )
    return LocalCluster(serving, resolve_model(settings.model))


def _simulated(settings: ValidateSettings) -> "SimulationOptions":
    from preble.cost_library import load_cost_model
    from preble_deploy.models import resolve_model
    from preble_loadgen.simulator import SimulationOptions
    from preble_worker.engines import read_model_shape

    shape = read_model_shape(resolve_model(settings.model))
    return SimulationOptions(
        cost=load_cost_model(settings.cost_model),
        num_workers=settings.workers,
        policy=settings.policy,
        local_policy=settings.local_policy,
        kv_cache_tokens=settings.kv_cache_tokens,
        max_batch_tokens=settings.max_num_batched_tokens,
        max_sequences=settings.max_num_seqs,
        context_tokens=min(shape.context_tokens, settings.kv_cache_tokens),
        vocab_size=shape.vocab_size,
        seed=settings.seed,
        report_seconds=0.0,
    )


def _notes(settings: ValidateSettings, trace: "Trace", validation: "Validation") -> str:
    overhead = validation.overhead
    return (
        f"{len(trace.requests)} requests of {trace.name} at {settings.rate:g} per second, seed "
        f"{settings.seed}, on {settings.workers} workers of {settings.threads} thread; cost model "
        f"{settings.cost_model}. Measured on the first {validation.num_rehearsed}, which the table "
        f"leaves out but for the time in steps: "
        f"{overhead.turn_seconds * 1e3:.2f} ms per step beyond the cost model, "
        f"wire {overhead.wire_seconds * 1e3:.2f} ms each way."
    )


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(ValidateSettings, run)
