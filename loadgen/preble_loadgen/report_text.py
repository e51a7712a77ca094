"""A report as a table for people, and as JSON for programs."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from preble_loadgen.report import FORMULAS, LATENESS_P99_MAX, Distribution, Report

_LATENCIES = {
    "ttft": "TTFT",
    "gap": "inter-token gap",
    "tpot": "TPOT",
    "e2e": "end to end",
    "lateness": "lateness",
}
_COLUMNS = ("mean", "p50", "p90", "p99", "max")


def report_json(report: Report, about: dict[str, Any]) -> str:
    """`about` (command, seed, date, versions) and the figures, one JSON object."""
    return json.dumps({**about, "metrics": asdict(report), "formulas": FORMULAS}, indent=2) + "\n"


def print_report(console: Console, report: Report) -> None:
    """Everything of `report`, then how it was computed, then what casts doubt on it."""
    console.print(_latencies(report), _totals(report))
    if report.workers:
        console.print(_workers(report))
    console.print(_legend())
    for warning in warnings(report):
        console.print(Text(f"warning: {warning}", style="yellow"))


def warnings(report: Report) -> list[str]:
    """What a reader of the figures should know first."""
    found = []
    if report.num_sent < report.num_planned:
        found.append(f"broken off: {report.num_sent} of {report.num_planned} requests were sent")
    if report.is_late:
        found.append(
            f"the generator was late: p99 {report.lateness.p99 * 1e3:.0f} ms, more than "
            f"{LATENESS_P99_MAX * 1e3:.0f} ms; arrivals were not the trace's, use a slower rate or "
            "another machine"
        )
    if report.num_short:
        found.append(f"{report.num_short} answers had not the length that was asked for")
    return found


def _latencies(report: Report) -> Table:
    table = Table("milliseconds", *_COLUMNS, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, label in _LATENCIES.items():
        distribution: Distribution = getattr(report, name)
        values = [getattr(distribution, column) * 1e3 for column in _COLUMNS]
        table.add_row(label, *(f"{v:,.1f}" if distribution.count else "-" for v in values))
    return table


def _totals(report: Report) -> Group:
    failures = ", ".join(f"{count} {reason}" for reason, count in report.failures.items())
    lines = [
        f"requests    {report.num_complete:,} complete, {report.num_failed:,} failed"
        + (f" ({failures})" if failures else ""),
        f"duration    {report.duration_seconds:,.1f} s",
        f"throughput  {report.requests_per_second:,.2f} requests/s, "
        f"{report.prompt_tokens_per_second:,.0f} prompt tokens/s, "
        f"{report.output_tokens_per_second:,.0f} output tokens/s",
        f"tokens      {report.prompt_tokens:,} prompt, {report.output_tokens:,} output",
        f"cached      {report.cached_share:.2%} of the prompt tokens ({report.cached_tokens:,})",
    ]
    if report.predicted_share is not None:
        error = report.prediction_error
        lines.append(
            f"predicted   {report.predicted_share:.2%} ({report.predicted_cached_tokens:,})"
            + ("" if error is None else f", error {error:+.2%}")
        )
    if report.lengths.mean_absolute_error is not None:
        rank = report.lengths.rank_correlation
        lines.append(
            f"lengths     predicted within {report.lengths.mean_absolute_error:,.1f} tokens on "
            f"average, rank correlation {'undefined' if rank is None else f'{rank:.3f}'}"
        )
    return Group("", *(Text(line) for line in lines), "")


def _workers(report: Report) -> Table:
    table = Table("worker", "requests", "share", "prompt", "cached", "output", box=None)
    table.pad_edge = False
    for column in table.columns[1:]:
        column.justify = "right"
    for worker in report.workers:
        table.add_row(
            worker.worker_id,
            f"{worker.requests:,}",
            f"{worker.requests / report.num_complete:.1%}",
            f"{worker.prompt_tokens:,}",
            f"{worker.cached_tokens / max(worker.prompt_tokens, 1):.1%}",
            f"{worker.output_tokens:,}",
        )
    table.caption = f"imbalance {report.imbalance:.2f}"
    table.caption_justify = "left"
    return table


def _legend() -> Table:
    table = Table.grid(padding=(0, 2))
    for name, formula in FORMULAS.items():
        table.add_row(Text(name, style="dim"), Text(formula, style="dim"))
    return table
