"""The analysis of a trace as tables for people, and as JSON for programs."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from preble_loadgen.analysis import QUANTILES, Analysis, Spread
from preble_loadgen.traces import Trace


def analysis_json(trace: Trace, analysis: Analysis) -> str:
    """Which trace, and its figures, one JSON object."""
    about = {
        "name": trace.name,
        "format": trace.format,
        "skipped_lines": trace.num_skipped,
        "first_skipped": trace.first_skipped,
    }
    return json.dumps({"trace": about, **asdict(analysis)}, indent=2)


def print_analysis(console: Console, trace: Trace, analysis: Analysis) -> None:
    """All figures, then what the words in front of them mean."""
    for line in _heading(trace, analysis):
        console.print(Text(line), soft_wrap=True)
    for table in (_spreads(analysis), _hits(analysis), _popularity(analysis), _legend()):
        console.print()
        console.print(table)


def _heading(trace: Trace, analysis: Analysis) -> list[str]:
    arrivals, sharing = analysis.arrivals, analysis.sharing
    peaks = ", ".join(f"{rate:,.1f} in {s} s" for s, rate in arrivals.peak_rates.items())
    peak = f", peak requests/s {peaks}" if peaks else ""
    lines = [
        f"{trace.name} ({trace.format}): {analysis.num_requests:,} requests, "
        f"{sharing.prompt_tokens:,} prompt tokens, {sharing.unique_tokens:,} of them unique",
        f"arrivals    {arrivals.rate:,.2f} requests/s over {arrivals.span_seconds:,.1f} s, "
        f"CV of the gaps {arrivals.gap_cv:.2f}{peak}",
    ]
    if arrivals.num_sessions:
        lines.append(
            f"sessions    {arrivals.num_sessions:,}; {arrivals.num_closed_loop:,} requests wait "
            "for an answer, and their arrivals are estimates"
        )
    if analysis.num_namespaces > 1:
        lines.append(f"namespaces  {analysis.num_namespaces:,}, which share nothing")
    if trace.num_skipped:
        lines.append(f"skipped     {trace.num_skipped:,} bad lines; {trace.first_skipped}")
    return lines


def _spreads(analysis: Analysis) -> Table:
    table = _table("", "mean", "sd", *QUANTILES)
    reuse = analysis.reuse_distance
    rows: dict[str, tuple[Spread | None, int]] = {
        "prompt tokens": (analysis.prompt_tokens, 0),
        "output tokens": (analysis.output_tokens, 0),
        "shared %": (analysis.sharing.shared_percent, 1),
        "key portion %": (analysis.key_portions.portion_percent, 1),
        "requests per key": (analysis.key_portions.requests_per_key, 0),
        "reuse, requests": (reuse.requests if reuse else None, 0),
        "reuse, unique tokens": (reuse.unique_tokens if reuse else None, 0),
    }
    for name, (spread, digits) in rows.items():
        if spread is None:
            table.add_row(name, *["-"] * (2 + len(QUANTILES)))
        else:
            values = (spread.mean, spread.sd, *spread.quantiles.values())
            table.add_row(name, *(_number(value, digits) for value in values))
    return table


def _number(value: float, digits: int) -> str:
    """With all its figures up to a million, so that no column is cut off on a terminal."""
    return f"{value / 1e6:,.2f}M" if value >= 1e6 else f"{value:,.{digits}f}"


def _hits(analysis: Analysis) -> Table:
    sharing = analysis.sharing
    table = _table("hit share, caches that never evict", "ideal", *_random_names(analysis))
    shares = (sharing.ideal_hit_share, *sharing.random_hit_shares.values())
    table.add_row("of all prompt tokens", *(f"{share:.1%}" for share in shares))
    return table


def _random_names(analysis: Analysis) -> list[str]:
    return [f"random on {workers}" for workers in analysis.sharing.random_hit_shares]


def _popularity(analysis: Analysis) -> Table:
    keys = analysis.key_portions
    table = _table("popularity", "keys", *(f"top {n}" for n in keys.top_shares))
    shares = [f"{share:.1%}" for share in keys.top_shares.values()]
    table.add_row("share of the requests", f"{keys.num_keys:,}", *shares)
    return table


def _legend() -> Table:
    table = Table.grid(padding=(0, 2))
    for name, meaning in {
        "shared": "tokens of a prompt that another request has at the same place, too",
        "key portion": "a prompt down to its deepest part longer than all before it together; "
        "all of it where nothing is shared",
        "key": "where a key portion ends: a tool, a document, a conversation",
        "reuse": "per reused token, from the last request that had it; unique tokens are "
        "the cache with which least recently used would just have kept it",
    }.items():
        table.add_row(Text(name, style="dim"), Text(meaning, style="dim"))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, *others, box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "left" if column is table.columns[0] else "right"
    return table
