"""The report as values: chapters of tables, and figures. HTML and Markdown write it down. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from preble_loadgen.tournament.report.capacity import Capacity
from preble_loadgen.tournament.report.statistics import Estimate

NONE = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """Cells as text; `strong` marks ours."""

    cells: tuple[str, ...]
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with what is to be known to read it.

    Attributes:
        num_names: columns from the left that hold words; the others hold figures.
        is_detail: too long for the repository: folded in HTML, left out of Markdown.
    """

    title: str
    text: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    num_names: int = 1
    is_detail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot as SVG, with what it shows."""

    title: str
    text: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """`anchor` is its name in links."""

    anchor: str
    title: str
    text: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()


def number(value: float) -> str:
    """Three digits that count, never an exponent."""
    if value and abs(value) < 0.001:
        return f"{value:.4f}"
    return f"{value:.3g}" if abs(value) < 1000.0 else f"{value:.0f}"


def share(value: float) -> str:
    """In per cent."""
    return f"{value:.1%}".replace("%", " %")


def with_interval(value: Estimate) -> str:
    """`mean ± half width`; the mean alone with one seed."""
    return number(value.mean) + (f" ± {number(value.half_width)}" if value.n > 1 else "")


def ratio(value: Estimate | None) -> str:
    """`ratio [low, high]`."""
    if value is None:
        return NONE
    interval = f" [{number(value.low)}, {number(value.high)}]" if value.n > 1 else ""
    return number(value.mean) + interval


def rate(value: Capacity | None) -> str:
    """A capacity with its sign where it is only a bound."""
    if value is None:
        return NONE
    sign = "≥ " if value.at_least else "≤ " if value.at_most else ""
    return sign + with_interval(value.rate)
