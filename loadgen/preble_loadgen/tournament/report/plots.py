"""Plots as SVG that can stand in an HTML page, drawn by matplotlib."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from preble_loadgen.tournament.report.palette import look
from preble_loadgen.tournament.report.statistics import Estimate

Curve = Sequence[tuple[float, Estimate]]
LINES_MAX = 16
"""With more workers than this, their loads are drawn as a band."""
POINTS_MAX = 300
MEAN_COLOUR = "#222222"
SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
}


def curves(
    panels: Sequence[tuple[str, Mapping[str, Curve]]],
    *,
    x_label: str,
    salt: str,
    log_x: bool = False,
) -> str:
    """Figures over a rate or a size, a line per policy, side by side; intervals of ours as a band.

    Args:
        panels: (label of the y axis, policy → curve). salt: makes the plot's ids unique in a page.
    """
    with rc_context(SETTINGS):
        canvas, grid = _canvas(len(panels), columns=len(panels), height=4.2)
        for axes, (label, lines) in zip(grid, panels, strict=True):
            _log(axes, "y")
            if log_x:
                _sizes(axes, lines)
            for policy, curve in lines.items():
                _line(axes, policy, curve)
            axes.set_xlabel(x_label)
            axes.set_ylabel(label)
        _legend(canvas, list(panels[0][1]))
        return _svg(canvas, salt)


def _line(axes: Axes, policy: str, curve: Curve) -> None:
    style, places = look(policy), [x for x, _ in curve]
    axes.plot(
        places,
        [value.mean for _, value in curve],
        color=style.colour,
        marker=style.marker,
        linestyle=style.stroke,
        linewidth=3.0 if style.is_ours else 1.2,
        markersize=6.0 if style.is_ours else 4.0,
        zorder=5 if style.is_ours else 3,
        label=policy,
        gid=_tag(policy),
    )
    if style.is_ours and any(value.n > 1 for _, value in curve):
        # A wide interval of few seeds may reach below 0, where a logarithmic axis ends.
        low = [max(value.low, value.mean / 10.0) for _, value in curve]
        high = [value.high for _, value in curve]
        axes.fill_between(
            places, low, high, color=style.colour, alpha=0.15, linewidth=0, gid=_tag(policy)
        )


def bars(panels: Sequence[tuple[str, Mapping[str, Estimate]]], *, x_label: str, salt: str) -> str:
    """Horizontal bars, the longest on top, with their intervals; a panel per workload."""
    with rc_context(SETTINGS):
        tallest = max(len(values) for _, values in panels)
        canvas, grid = _canvas(len(panels), columns=3, height=0.9 + 0.19 * tallest, width=11.5)
        for axes, (title, values) in zip(grid, panels, strict=False):
            ordered = sorted(values.items(), key=lambda item: item[1].mean)
            for place, (policy, value) in enumerate(ordered):
                axes.barh(
                    place,
                    value.mean,
                    xerr=[[max(0.0, value.mean - max(value.low, 0.0))], [value.high - value.mean]],
                    error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
                    color=look(policy).colour,
                    alpha=1.0 if look(policy).is_ours else 0.55,
                )
            axes.set_yticks(range(len(ordered)), [policy for policy, _ in ordered], fontsize=7.5)
            axes.set_title(title, loc="left")
            axes.set_xlabel(x_label)
        return _svg(canvas, salt)


def scatter(panels: Sequence[tuple[str, Mapping[str, tuple[float, float]]]], *, salt: str) -> str:
    """Hit share over imbalance, a point per policy; a panel per workload."""
    with rc_context(SETTINGS):
        canvas, grid = _canvas(len(panels), columns=3, height=3.0)
        for axes, (title, points) in zip(grid, panels, strict=False):
            for policy, (imbalance, hits) in points.items():
                style = look(policy)
                axes.scatter(
                    [imbalance],
                    [hits],
                    color=style.colour,
                    marker=style.marker,
                    s=90 if style.is_ours else 34,
                    zorder=5 if style.is_ours else 3,
                    gid=_tag(policy),
                    label=policy,
                )
            axes.set_title(title, loc="left")
            axes.set_xlabel("largest / mean busy time")
            axes.set_ylabel("cached share of prompt tokens")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.grid(alpha=0.3)
        _legend(canvas, _names(points for _, points in panels))
        return _svg(canvas, salt)


def tails(panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]], *, salt: str) -> str:
    """Share of the requests that waited longer than so many seconds, both on logarithmic axes.

    Args:
        panels: (title, policy → quantiles, evenly spaced from p0 to p100).
    """
    with rc_context(SETTINGS):
        canvas, grid = _canvas(len(panels), columns=3, height=3.2)
        for axes, (title, lines) in zip(grid, panels, strict=False):
            _log(axes, "x")
            axes.set_yscale("log")
            for policy, quantiles in lines.items():
                style = look(policy)
                # p100 has no share above it, which a logarithm cannot show.
                axes.plot(
                    quantiles[:-1],
                    1.0 - np.linspace(0.0, 1.0, len(quantiles))[:-1],
                    color=style.colour,
                    linestyle=style.stroke,
                    linewidth=3.0 if style.is_ours else 1.2,
                    zorder=5 if style.is_ours else 3,
                    gid=_tag(policy),
                )
            axes.set_ylim(0.009, 1.05)
            axes.set_yticks([1.0, 0.1, 0.01], ["100 %", "10 %", "1 %"])
            axes.set_title(title, loc="left")
            axes.set_xlabel("TTFT (s)")
            axes.set_ylabel("requests above")
        _legend(canvas, _names(lines for _, lines in panels), markers=False)
        return _svg(canvas, salt)


def loads(
    panels: Sequence[tuple[str, Sequence[tuple[float, Sequence[float]]]]], *, salt: str
) -> str:
    """Each worker's waiting tokens over time, a panel per policy, all on the same scale."""
    with rc_context(SETTINGS):
        canvas, grid = _canvas(len(panels), columns=3, height=2.3, share_axes=True)
        for axes, (policy, samples) in zip(grid, panels, strict=False):
            kept = samples[:: math.ceil(len(samples) / POINTS_MAX)]
            seconds = [at for at, _ in kept]
            of_workers = np.array([values for _, values in kept], dtype=np.float64)
            colour = look(policy).colour
            if of_workers.shape[1] <= LINES_MAX:
                axes.plot(seconds, of_workers, color=colour, linewidth=0.8, alpha=0.6)
            else:
                low, high = of_workers.min(axis=1), of_workers.max(axis=1)
                axes.fill_between(seconds, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(seconds, of_workers.mean(axis=1), color=MEAN_COLOUR, linewidth=1.2)
            axes.set_title(policy, loc="left")
            axes.set_xlabel("time (s)")
            axes.set_ylabel("waiting tokens")
        return _svg(canvas, salt)


def dots(
    panels: Sequence[tuple[str, Mapping[str, Mapping[str, Estimate]]]], *, x_label: str, salt: str
) -> str:
    """Ratios with their intervals on a logarithmic axis, a row per fault or term.

    Args:
        panels: (title, row → policy → ratio).
    """
    with rc_context(SETTINGS):
        tallest = max(len(rows) for _, rows in panels)
        canvas, grid = _canvas(len(panels), columns=2, height=1.1 + 0.5 * tallest)
        names = _names(policies for _, rows in panels for policies in rows.values())
        for axes, (title, rows) in zip(grid, panels, strict=False):
            _log(axes, "x")
            axes.axvline(1.0, color="#888888", linewidth=0.8)
            for place, policies in enumerate(rows.values()):
                for policy, value in policies.items():
                    _dot(axes, policy, value, place + 0.7 * _offset(names, policy))
            axes.set_yticks(range(len(rows)), list(rows))
            axes.invert_yaxis()
            axes.set_title(title, loc="left")
            axes.set_xlabel(x_label)
        if len(names) > 1:
            _legend(canvas, names)
        return _svg(canvas, salt)


def _offset(names: Sequence[str], policy: str) -> float:
    """From -1/2 to 1/2, so that the policies of a row lie beneath each other."""
    return (names.index(policy) + 0.5) / len(names) - 0.5


def _dot(axes: Axes, policy: str, value: Estimate, height: float) -> None:
    style = look(policy)
    # Intervals of two seeds can span decades; what lies beyond is in the table.
    low, high = max(value.low, value.mean / 3.0), min(value.high, value.mean * 3.0)
    axes.plot([low, high], [height] * 2, color=style.colour, linewidth=1.0, gid=_tag(policy))
    axes.plot(
        [value.mean],
        [height],
        color=style.colour,
        marker=style.marker,
        markersize=6.0 if style.is_ours else 4.0,
        gid=_tag(policy),
    )


def _canvas(
    count: int, *, columns: int, height: float, width: float = 10.0, share_axes: bool = False
) -> tuple[Canvas, list[Axes]]:
    """Room for `count` panels, each `height` inches; the last row's empty ones are not drawn."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    # A single panel as wide as three would be a band.
    width = width if columns > 1 else 0.7 * width
    canvas = Canvas(figsize=(width, rows * height), layout="constrained")
    grid = list(
        canvas.subplots(rows, columns, squeeze=False, sharex=share_axes, sharey=share_axes).flat
    )
    for empty in grid[count:]:
        empty.set_visible(False)
    return canvas, grid[:count]


def _log(axes: Axes, which: str) -> None:
    """1, 2, 5, 10: over some decades every line, over many only the powers of ten."""
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _sizes(axes: Axes, lines: Mapping[str, Curve]) -> None:
    """An axis of doublings that is marked where there are points."""
    sizes = sorted({x for curve in lines.values() for x, _ in curve})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])


def _legend(canvas: Canvas, names: Sequence[str], *, markers: bool = True) -> None:
    keys = [
        Line2D(
            [],
            [],
            color=look(name).colour,
            linestyle=look(name).stroke,
            marker=look(name).marker if markers else "",
            markersize=4.0,
            linewidth=3.0 if look(name).is_ours else 1.2,
            label=name,
        )
        for name in names
    ]
    canvas.legend(handles=keys, loc="outside right upper", fontsize=8, handlelength=3.2)


def _names(panels: Iterable[Iterable[str]]) -> list[str]:
    """All policies of the panels, once each, in the order in which they first appear."""
    return list(dict.fromkeys(name for panel in panels for name in panel))


def _tag(policy: str) -> str:
    return f"policy:{policy}"


def _svg(canvas: Canvas, salt: str) -> str:
    """Without prologue and metadata, its ids unique in the page, its policies marked as such."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": salt}):
        canvas.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = re.sub(r'<g id="policy:([^"]*)"', r'<g data-policy="\1"', svg[svg.index("<svg") :])
    return re.sub(r'<g id="[^"]*"', "<g", svg)
