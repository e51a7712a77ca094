"""`preble profile`: measure an engine's steps, fit a cost model, judge it, write it."""

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, thread_time

import numpy as np
from rich.console import Console
from rich.progress import Progress

from preble.errors import ConfigError, PrebleError
from preble_loadgen.fit import WORST_ERROR_MAX, Fit, MeasuredStep, fit_both, with_compact_form
from preble_loadgen.profile_plan import StepShape, plan_compact_steps, plan_steps
from preble_loadgen.profile_text import compare, describe, describe_compact
from preble_loadgen.steady import steady_seconds
from preble_loadgen.step_bench import StepBench
from preble_worker.config import WorkerConfig
from preble_worker.engines import load_engine
from preble_worker.kv_form import KvForm

NUM_WARM = 2
NUM_TIMED = 5
STEPS_MIN = 16
"""Fewer kinds of steps say too little about six coefficients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What to measure, and where the results go.

    Attributes:
        rounds: how often every step is visited.
        quick: visit a third of the steps.
        cpu_time: time by the CPU seconds of the engine's one thread.
    """

    worker: WorkerConfig
    out: Path
    plot: Path
    rounds: int
    quick: bool
    cpu_time: bool


def run_profile(options: ProfileOptions) -> int:
    """Writes the cost model and its residual plot.

    Raises:
        ConfigError: an option cannot be used.
        PrebleError: the fit is too bad to be used; it is not written, its plot is.
    """
    _check(options)
    console = Console()
    loaded = load_engine(options.worker)
    shapes = plan_steps(loaded.scheduler, quick=options.quick)
    if len(shapes) < STEPS_MIN:
        raise ConfigError(
            f"the scheduler's options leave {len(shapes)} kinds of steps to measure, at least "
            f"{STEPS_MIN} are needed; raise --kv-cache-tokens, --max-num-batched-tokens or "
            "--max-num-seqs"
        )
    bench = StepBench(loaded, clock=thread_time if options.cpu_time else perf_counter)
    steps = measure(bench, shapes, rounds=options.rounds)
    compact = {
        form: measure(bench, planned, rounds=options.rounds)
        for form in KvForm
        if (planned := plan_compact_steps(loaded.scheduler, form))
    }
    name = f"{options.worker.model} on {_device(options.worker)}"
    fits = fit_both(steps, name=name, source=_source(options, len(steps)))
    console.print(compare(fits), highlight=False, soft_wrap=True)
    cost = fits[0].cost
    for form, measured in compact.items():
        cost = with_compact_form(cost, measured, form)
    fit = replace(fits[0], cost=cost)
    console.print(describe(fit), highlight=False, soft_wrap=True)
    for form, measured in compact.items():
        console.print(describe_compact(cost, measured, form), highlight=False, soft_wrap=True)
    _plot(fit, options.plot)
    console.print(f"residuals: {options.plot}", soft_wrap=True)
    write(fit, options)
    console.print(f"cost model: {options.out}", soft_wrap=True)
    return 0


def measure(bench: StepBench, shapes: Sequence[StepShape], *, rounds: int) -> list[MeasuredStep]:
    """Each shape once per round; within a round the median of a few steps counts."""
    visits: list[list[MeasuredStep]] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring steps", total=rounds * len(shapes))
        for _ in range(rounds):
            visits.append([])
            for shape in shapes:
                visits[-1].append(bench.measure(shape, num_warm=NUM_WARM, num_timed=NUM_TIMED))
                progress.advance(task)
    seconds = steady_seconds(np.array([[step.seconds for step in visit] for visit in visits]))
    return [replace(step, seconds=s) for step, s in zip(visits[0], seconds.tolist(), strict=True)]


def write(fit: Fit, options: ProfileOptions) -> None:
    """Write the cost model, unless it misses by too much.

    Raises:
        PrebleError: it does.
    """
    if not fit.is_usable:
        worst = fit.worst
        raise PrebleError(
            f"the fit misses a held-out step by {fit.worst_error:.0%}, over {WORST_ERROR_MAX:.0%}: "
            f"{worst.kind} of {worst.prefill_tokens:g} new tokens and {worst.decodes:g} decodes, "
            f"measured {worst.seconds * 1e3:.2f} ms, predicted "
            f"{worst.predicted(fit.cost) * 1e3:.2f} ms. Nothing is written. If the device is busy "
            f"with other things, free it or raise --rounds; {options.plot} shows every step"
        )
    options.out.write_text(fit.cost.to_json(), encoding="utf-8")


def _check(options: ProfileOptions) -> None:
    for path in (options.out, options.plot):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path.parent} is no directory, so {path.name} cannot go there")
    worker = options.worker
    if options.cpu_time and (worker.engine, worker.device, worker.threads) != ("torch", "cpu", 1):
        raise ConfigError("--cpu-time needs --engine torch, --device cpu and --threads 1")


def _plot(fit: Fit, path: Path) -> None:
    try:
        from preble_loadgen.residual_plot import plot_residuals
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the plot needs {error.name}, which is not installed: pip install 'preble[loadgen]'"
        ) from error
    plot_residuals(fit, path)


def _source(options: ProfileOptions, num_steps: int) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    clock = "CPU time" if options.cpu_time else "wall time"
    threads = f", {options.worker.threads} threads" if options.worker.threads else ""
    return (
        f"measured {today} on {_machine(options.worker)}{threads}; {num_steps} kinds of steps, "
        f"{clock}, {options.rounds} rounds at their usual pace"
    )


def _device(worker: WorkerConfig) -> str:
    """The device that the engine chose, without its number."""
    if worker.engine == "simulated":
        return "a simulated engine"
    if worker.device == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return worker.device.partition(":")[0]


def _machine(worker: WorkerConfig) -> str:
    device = _device(worker)
    if device == "cpu":
        return f"{_cpu_model()}, {os.cpu_count()} cores"
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name(worker.device if ":" in worker.device else None))
    return device


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
