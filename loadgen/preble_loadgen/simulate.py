"""`preble simulate`: a trace on simulated clusters, one per policy, and their figures."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from preble_loadgen.goodput import Goodput, goodput_of
from preble_loadgen.objectives import Service, service_of
from preble_loadgen.replay_options import ReplayOptions, arrival_times, selected_trace
from preble_loadgen.report import FORMULAS, Report, summarize
from preble_loadgen.report_text import print_report
from preble_loadgen.result_files import ResultFiles, circumstances, result_files
from preble_loadgen.scaling import prompt_tokens
from preble_loadgen.simulation_cells import CellResult, Load, run_cells
from preble_loadgen.simulator import SimulationOptions
from preble_loadgen.traces import Trace
from preble_loadgen.wide_console import wide_console
from preble_worker.config import NO_TIERS

EXIT_FAILURES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What to simulate.

    Attributes:
        trace: which requests, and when they come; `url` does not count.
        cluster: everything but the policy.
        policies: of routing, one run each.
        jobs: runs at once.
    """

    trace: ReplayOptions
    cluster: SimulationOptions
    policies: tuple[str, ...]
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class _Cell:
    """One run with its figures."""

    policy: str
    cell: CellResult
    report: Report
    service: Service
    goodput: Goodput | None


def run_simulate(options: SimulateOptions) -> int:
    """Shows progress and figures, writes the files asked for.

    Returns:
        The exit status: 0 if every request was answered in every run, 1 if not.

    Raises:
        ConfigError: an option or the trace cannot be used.
    """
    trace = selected_trace(options.trace)
    arrivals = arrival_times(trace.requests, options.trace)
    with result_files(options.trace.out, options.trace.requests_out) as files:
        console = Console(stderr=True)
        console.print(_introduction(options, trace, arrivals), highlight=False)
        cells = _run(options, Load(trace.requests, arrivals, trace.salt), console)
        _print(wide_console(), cells, has_tiers=options.cluster.tiers != NO_TIERS)
        _write(files, options, trace, cells)
    return EXIT_FAILURES if any(cell.report.num_failed for cell in cells) else 0


def _run(options: SimulateOptions, load: Load, console: Console) -> list[_Cell]:
    wanted = [replace(options.cluster, policy=policy) for policy in options.policies]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with ExitStack() as stack:
        progress = Progress(*columns, console=console, transient=True)
        if console.is_terminal:
            stack.enter_context(progress)
        tasks = [progress.add_task(name, total=len(load.requests)) for name in options.policies]

        def show(counts: list[int]) -> None:
            for task, count in zip(tasks, counts, strict=True):
                progress.update(task, completed=count)

        results = run_cells(load, wanted, jobs=options.jobs, on_progress=show)
    return [
        _Cell(
            policy,
            cell,
            summarize(cell.result.records),
            _service_of(cell, load, cluster),
            _goodput_of(cell, cluster),
        )
        for policy, cell, cluster in zip(options.policies, results, wanted, strict=True)
    ]


def _service_of(cell: CellResult, load: Load, cluster: SimulationOptions) -> Service:
    return service_of(
        cell.result.records,
        load.requests,
        ttft_slo_seconds=cluster.ttft_slo_seconds,
        tbt_slo_seconds=cluster.tbt_slo_seconds,
    )


def _goodput_of(cell: CellResult, cluster: SimulationOptions) -> Goodput | None:
    """Where requests may be refused."""
    if not (cluster.timeout_seconds or cluster.max_queue_seconds):
        return None
    return goodput_of(cell.result.records, timeout_seconds=cluster.timeout_seconds or inf)


def _introduction(options: SimulateOptions, trace: Trace, arrivals: Sequence[float]) -> str:
    cluster = options.cluster
    prompts = sum(prompt_tokens(request) for request in trace.requests)
    outputs = sum(request.output_tokens for request in trace.requests)
    lines = [
        f"{trace.name} ({trace.format}): {len(trace.requests):,} requests, {prompts:,} prompt and "
        f"{outputs:,} output tokens, over {max(arrivals) - min(arrivals):,.1f} s",
        f"on {cluster.num_workers} workers with {cluster.kv_cache_tokens:,} tokens of KV cache: "
        f"{cluster.cost.name} ({cluster.cost.source})",
    ]
    if trace.factor != 1.0:
        lines.append(f"lengths divided by {trace.factor:.4g}")
    if trace.num_skipped:
        lines.append(f"{trace.num_skipped:,} bad lines skipped; {trace.first_skipped}")
    return "\n".join(lines)


def _print(console: Console, cells: Sequence[_Cell], *, has_tiers: bool) -> None:
    if len(cells) == 1:
        print_report(console, cells[0].report)
    else:
        console.print(_comparison(cells))
    for cell in cells:
        result = cell.cell.result
        console.print(
            Text(
                f"{cell.policy}: {result.duration_seconds:,.1f} s and {result.num_steps:,} steps "
                f"in {cell.cell.wall_seconds:.1f} s; digest {result.digest}",
                style="dim",
            ),
            Text(f"  {_service(cell.service)}"),
        )
        if cell.goodput is not None:
            console.print(Text(f"  {_in_time(cell.goodput)}"))
        if has_tiers or result.crossings.preemptions:
            console.print(Text(f"  {_crossings(cell)}"))


def _service(service: Service) -> str:
    return (
        f"{service.within:.1%} within TTFT {service.ttft_slo_seconds:g} s and p99 gap "
        f"{service.tbt_slo_seconds:g} s; normalised latency {service.token_seconds * 1e3:,.1f} ms "
        "per output token"
    )


def _in_time(goodput: Goodput) -> str:
    return (
        f"goodput {goodput.requests_per_second:,.2f} requests and "
        f"{goodput.tokens_per_second:,.0f} output tokens per second: {goodput.good_share:.1%} in "
        f"time, {goodput.num_refused:,} refused, {goodput.num_late:,} too late; "
        f"{goodput.wasted_tokens:,} output tokens wasted"
    )


def _crossings(cell: _Cell) -> str:
    crossings, num_sent = cell.cell.result.crossings, max(cell.report.num_sent, 1)
    return (
        f"{crossings.preemptions:,} preemptions, {crossings.swaps:,} swapped and "
        f"{crossings.recomputes:,} recomputed by choice; "
        f"{crossings.offloaded_bytes / 1e9:,.2f} GB out and "
        f"{crossings.uploaded_bytes / 1e9:,.2f} GB in; "
        f"{crossings.hidden_starts / num_sent:.1%} started in the hidden form and "
        f"{crossings.int8_starts / num_sent:.1%} in int8"
    )


def _comparison(cells: Sequence[_Cell]) -> Table:
    """One row per policy."""
    table = Table(
        *("policy", "TTFT mean", "p50", "p99", "e2e mean", "p99", "gap p99"),
        *("cached", "predicted", "lengths MAE", "rank", "imbalance", "req/s", "failed"),
        box=None,
        pad_edge=False,
        caption="milliseconds; lengths MAE and rank: predicted against actual output tokens, mean "
        "error and Spearman's correlation; imbalance: largest / mean of the workers' busy time",
        caption_justify="left",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for cell in cells:
        report = cell.report
        seconds = (
            *(report.ttft.mean, report.ttft.p50, report.ttft.p99),
            *(report.e2e.mean, report.e2e.p99, report.gap.p99),
        )
        table.add_row(
            cell.policy,
            *(f"{value * 1e3:,.1f}" for value in seconds),
            f"{report.cached_share:.2%}",
            "-" if report.predicted_share is None else f"{report.predicted_share:.2%}",
            _figure(report.lengths.mean_absolute_error, ".0f"),
            _figure(report.lengths.rank_correlation, ".2f"),
            f"{cell.cell.result.busy_imbalance:.2f}",
            f"{report.requests_per_second:,.2f}",
            f"{report.num_failed:,}",
        )
    return table


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _write(
    files: ResultFiles, options: SimulateOptions, trace: Trace, cells: Sequence[_Cell]
) -> None:
    if files.figures is not None:
        document = circumstances() | {
            "seed": options.cluster.seed,
            "trace": {"name": trace.name, "requests": len(trace.requests), "factor": trace.factor},
            "cluster": asdict(replace(options.cluster, policy="", faults=())),
            "faults": [_finite(asdict(fault)) for fault in options.cluster.faults],
            "cells": [_cell_figures(cell) for cell in cells],
            "formulas": FORMULAS,
        }
        files.figures.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    if files.requests is not None:
        for cell in cells:
            for record in sorted(cell.cell.result.records, key=lambda record: record.index):
                line = {"policy": cell.policy} | asdict(record)
                files.requests.write(orjson.dumps(line, default=list).decode() + "\n")


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: what lasts for ever has null seconds."""
    return {name: None if value == inf else value for name, value in fields.items()}


def _cell_figures(cell: _Cell) -> dict[str, Any]:
    result = cell.cell.result
    return {
        "policy": cell.policy,
        "digest": result.digest,
        "wall_seconds": cell.cell.wall_seconds,
        "steps": result.num_steps,
        "placements": result.num_placements,
        "retries": result.num_retries,
        "snapshots": result.num_snapshots,
        "busy_imbalance": result.busy_imbalance,
        "metrics": asdict(cell.report),
        "service": asdict(cell.service),
        "goodput": None if cell.goodput is None else asdict(cell.goodput),
        "crossings": asdict(result.crossings),
        "workers": [asdict(worker) for worker in result.workers],
        "samples": [asdict(sample) for sample in result.samples],
    }
