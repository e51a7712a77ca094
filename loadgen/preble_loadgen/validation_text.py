"""What `preble validate` says: both runs side by side, and whether they agree. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from preble_loadgen.report import Report
from preble_loadgen.validation import Validation

MEAN_ERROR_MAX = 0.15
"""Of mean TTFT and mean end to end, relative to the live run."""
CACHED_ERROR_MAX = 0.01
"""Of the cached share: its difference, as a share of all prompt tokens."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both runs; `passes` is None where nothing is promised."""

    name: str
    live: str
    simulated: str
    difference: str
    passes: bool | None = None


def rows(validation: Validation) -> list[Row]:
    """The comparison, the promised figures first."""
    live, simulated = validation.live, validation.simulated

    def seconds(name: str, of: Callable[[Report], float], bound: float | None = None) -> Row:
        ratio = of(simulated) / of(live) if of(live) else float("nan")
        passes = None if bound is None else abs(ratio - 1.0) <= bound
        return Row(
            name,
            f"{of(live) * 1e3:.1f} ms",
            f"{of(simulated) * 1e3:.1f} ms",
            f"{ratio:.3f} x",
            passes,
        )

    shift = simulated.cached_share - live.cached_share
    busy = validation.live_busy_seconds
    return [
        seconds("TTFT, mean", lambda report: report.ttft.mean, MEAN_ERROR_MAX),
        seconds("end to end, mean", lambda report: report.e2e.mean, MEAN_ERROR_MAX),
        Row(
            "cached share",
            f"{live.cached_share:.2%}",
            f"{simulated.cached_share:.2%}",
            f"{shift * 100:+.2f} points",
            abs(shift) <= CACHED_ERROR_MAX,
        ),
        seconds("TTFT, p50", lambda report: report.ttft.p50),
        seconds("TTFT, p99", lambda report: report.ttft.p99),
        seconds("end to end, p50", lambda report: report.e2e.p50),
        seconds("end to end, p99", lambda report: report.e2e.p99),
        seconds("per output token, mean", lambda report: report.tpot.mean),
        Row(
            "workers' time in steps",
            f"{busy:.2f} s",
            f"{validation.simulated_busy_seconds:.2f} s",
            f"{validation.simulated_busy_seconds / busy if busy else float('nan'):.3f} x",
        ),
        Row("failed requests", str(live.num_failed), str(simulated.num_failed), ""),
    ]


def agrees(validation: Validation) -> bool:
    """Whether every promise is kept, and every request was answered."""
    failed = validation.live.num_failed + validation.simulated.num_failed
    return not failed and all(row.passes is not False for row in rows(validation))


def as_markdown(validation: Validation) -> str:
    """A table for people, on a terminal or in a file."""
    cells = [("", "live", "simulated", "simulated / live", "")]
    cells += [
        (row.name, row.live, row.simulated, row.difference, _verdict(row.passes))
        for row in rows(validation)
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = [_line(line, widths) for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    name, *figures = cells
    padded = [f"{name:<{widths[0]}}"]
    padded += [f"{text:>{width}}" for text, width in zip(figures, widths[1:], strict=True)]
    return "| " + " | ".join(padded) + " |"


def _verdict(passes: bool | None) -> str:
    return {True: "ok", False: "OFF", None: ""}[passes]
