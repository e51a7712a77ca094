"""One workload on a live cluster under several policies: what was seen, in a table and a page."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as TerminalTable

from preble.client import AsyncClient
from preble_loadgen.progress import Progress, show
from preble_loadgen.replay import ReplayOptions, replay
from preble_loadgen.report import Report
from preble_loadgen.result_files import circumstances
from preble_loadgen.tournament.report.document import Chapter, Figure, Row, Table, share
from preble_loadgen.tournament.report.groups import OURS
from preble_loadgen.tournament.report.html import to_html
from preble_loadgen.tournament.report.palette import look
from preble_loadgen.traces import Trace

SAMPLE_SECONDS = 0.5
TITLE = "Routing policies on a live cluster"
COLUMNS = (
    *("policy", "TTFT mean", "p50", "p99", "e2e mean", "p99"),
    *("cached", "imbalance", "req/s", "failed"),
)
READING = (
    "Latencies in milliseconds. cached: share of the prompt tokens that no worker computed anew."
    " imbalance: computed tokens of the busiest worker over the mean."
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What one policy did.

    Attributes:
        ttft_quantiles: seconds, p0 to p100.
        load: (seconds since the start, prompt tokens that wait for prefill, by worker).
    """

    policy: str
    report: Report
    ttft_quantiles: Sequence[float]
    load: Sequence[tuple[float, Sequence[float]]]


async def observed(policy: str, options: ReplayOptions, trace: Trace, *, console: Console) -> Shown:
    """Replays `trace` on the gRPC address of `options`, with progress on `console`."""
    progress, load = Progress(), list[tuple[float, Sequence[float]]]()
    watching = [
        asyncio.create_task(show(progress, console)),
        asyncio.create_task(_sample(options.url.removeprefix("grpc://"), load)),
    ]
    try:
        report = await replay(options, trace=trace, progress=progress)
    finally:
        for task in watching:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*watching)
    waits = [r.first_at - r.sent_at for r in progress.records if r.first_at is not None]
    quantiles = np.quantile(waits, np.linspace(0.0, 1.0, 101)).tolist() if waits else []
    return Shown(policy, report, quantiles, load)


async def _sample(address: str, load: list[tuple[float, Sequence[float]]]) -> None:
    """What waits at each worker, again and again until cancelled."""
    clock = asyncio.get_running_loop().time
    began_at = clock()
    async with AsyncClient(address) as client:
        while True:
            state = await client.cluster()
            waiting = {w.address: w.load.waiting_prefill_tokens for w in state.workers}
            load.append((clock() - began_at, [waiting[name] for name in sorted(waiting)]))
            await asyncio.sleep(SAMPLE_SECONDS)


def print_comparison(console: Console, shown: Sequence[Shown]) -> None:
    """A row per policy."""
    table = TerminalTable(
        *COLUMNS, box=None, pad_edge=False, caption=READING, caption_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for one in shown:
        table.add_row(*_cells(one))
    console.print(table)


def write_page(path: Path, shown: Sequence[Shown], *, about: Mapping[str, str]) -> None:
    """The comparison with plots, as one HTML file that needs nothing else.

    Args:
        about: what one must know to repeat the run.
    """
    # matplotlib takes a second to import, and only this needs it.
    from preble_loadgen.tournament.report import plots

    table = Table(
        title="Figures",
        text=READING,
        columns=COLUMNS,
        rows=[Row(_cells(one), strong=one.policy == OURS) for one in shown],
    )
    figures = [
        Figure(
            title="Tail of the time to first token",
            text="Share of the requests whose first token took longer than so many seconds, both"
            " axes logarithmic; further left is better.",
            svg=plots.tails(
                [("live", {one.policy: one.ttft_quantiles for one in shown if one.ttft_quantiles})],
                salt="tails",
            ),
        ),
        Figure(
            title="Load over time",
            text="Prompt tokens that wait for prefill, a line per worker, the mean in black; the"
            " same scale for every policy.",
            svg=plots.loads([(one.policy, one.load) for one in shown if one.load], salt="loads"),
        ),
    ]
    chapter = Chapter(
        anchor="live",
        title="The same requests under each policy",
        text="Each policy had a cluster of its own, started afresh: a router and workers in"
        " processes of their own, whose engines sleep as long as the cost model says.",
        tables=[table],
    )
    known = circumstances()
    page = to_html(
        [chapter],
        {chapter.anchor: figures},
        title=TITLE,
        circumstances={**about, "command": known["command"], "date": known["date"]},
        policies={one.policy: look(one.policy).colour for one in shown},
    )
    path.write_text(page, encoding="utf-8")


def _cells(one: Shown) -> tuple[str, ...]:
    report = one.report
    seconds = (report.ttft.mean, report.ttft.p50, report.ttft.p99, report.e2e.mean, report.e2e.p99)
    return (
        one.policy,
        *(f"{value * 1e3:,.0f}" for value in seconds),
        share(report.cached_share),
        f"{report.imbalance:.2f}",
        f"{report.requests_per_second:.2f}",
        str(report.num_failed),
    )
