"""How much a worker sustains under each contender: sweeps over rates, and where they break. Pure.

Effective throughput (Apt-Serve): the highest rate with at least 90 % of the requests within both
SLOs. Throughput at equal latency (ALISE): the highest rate with a mean normalised latency, seconds
end to end per output token, of at most so many times what requests take that are alone on the
worker. Between the highest rate of a sweep that keeps a limit and the next, which does not, the
share, or the logarithm of the latency, is taken as a straight line over the rate.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from preble_loadgen.tournament.cell import SLO_SHARE, CellFigures, CellKey
from preble_loadgen.tournament.report.capacity import Capacity
from preble_loadgen.tournament.report.statistics import estimate
from preble_loadgen.tournament.worker_figures import WorkerFigures

LATENCY_LEVELS = (2.0, 5.0)
"""Times the latency alone, at which throughputs are compared."""

Sweeps = dict[int, list[CellFigures]]
"""The cells of one contender by seed, slowest rate first."""


@dataclass(frozen=True, slots=True, order=True)
class Field:
    """What contenders have in common that compete with each other."""

    cost_model: str
    cv: float
    workload: str

    @classmethod
    def of(cls, key: CellKey) -> "Field":
        """A contest with a clock of its own stands beside those with Poisson arrivals."""
        return cls(key.cost_model, key.cv or 1.0, key.workload)


def contender(key: CellKey) -> str:
    """Policy, tiers and predictor in words."""
    words = [key.local_policy, *key.tiers]
    if key.length_predictor:
        noise = f" ±{key.length_noise:g}" if key.length_noise else ""
        return "+".join(words) + f", {key.length_predictor}{noise}"
    return "+".join(words)


def by_field(cells: Iterable[CellFigures]) -> dict[Field, dict[str, Sweeps]]:
    """Field → contender → seed → sweep, contenders in the order in which they come."""
    found: dict[Field, dict[str, Sweeps]] = {}
    for cell in sorted(cells, key=lambda cell: cell.key.rate):
        sweeps = found.setdefault(Field.of(cell.key), {}).setdefault(contender(cell.key), {})
        sweeps.setdefault(cell.key.seed, []).append(cell)
    return {field: found[field] for field in sorted(found)}


def own(cell: CellFigures) -> WorkerFigures:
    """The figures that every cell of the study has."""
    assert cell.worker is not None, "a cell of another section"
    return cell.worker


def stretch(cell: CellFigures) -> float:
    """Mean normalised latency over that alone."""
    return own(cell).normalised_latency / own(cell).alone_latency


def effective_throughput(sweeps: Sweeps) -> Capacity:
    """Over all seeds, requests/s."""
    return _capacity(sweeps, lambda cell: 1.0 - cell.within_slo, 1.0 - SLO_SHARE)


def equal_latency_throughput(sweeps: Sweeps, level: float) -> Capacity:
    """Over all seeds, requests/s, at `level` times the latency alone."""
    return _capacity(sweeps, lambda cell: math.log(stretch(cell)), math.log(level))


def highest_rate(points: Sequence[tuple[float, float]], limit: float) -> tuple[float, bool, bool]:
    """Where a sweep breaks its limit, whether that is a lower and whether an upper bound.

    Args:
        points: (rate, figure) by rate, at least one; the figure should be at most `limit`.
    """
    kept = [index for index, (_, figure) in enumerate(points) if figure <= limit + 1e-9]
    if not kept:
        return points[0][0], False, True
    if kept[-1] == len(points) - 1:
        return points[-1][0], True, False
    (rate, good), (next_rate, bad) = points[kept[-1]], points[kept[-1] + 1]
    part = min(max((limit - good) / (bad - good), 0.0), 1.0)
    return rate + part * (next_rate - rate), False, False


def _capacity(sweeps: Sweeps, figure: Callable[[CellFigures], float], limit: float) -> Capacity:
    found = [
        highest_rate([(cell.key.rate, figure(cell)) for cell in sweep], limit)
        for sweep in sweeps.values()
    ]
    return Capacity(
        rate=estimate(rate for rate, _, _ in found),
        at_least=any(at_least for _, at_least, _ in found),
        at_most=any(at_most for _, _, at_most in found),
    )


@dataclass(frozen=True, slots=True)
class Gain:
    """A contender's throughput over another's: `sign` is "≥ " or "≤ " where it is only a bound,
    "~ " where both rates are, in directions that say nothing.
    """

    ratio: float
    sign: str

    @property
    def text(self) -> str:
        """With its sign."""
        return f"{self.sign}{self.ratio:.2f}×"


def gain(ours: Capacity, theirs: Capacity) -> Gain:
    """`ours` over `theirs`."""
    low = ours.at_least or theirs.at_most
    high = ours.at_most or theirs.at_least
    sign = "~ " if low and high else "≥ " if low else "≤ " if high else ""
    return Gain(ours.rate.mean / theirs.rate.mean, sign)


def common(sweeps: Sweeps, others: Sweeps) -> tuple[Sweeps, Sweeps]:
    """Both with the seeds and rates alone that both have, so that ratios are paired."""
    rates = {
        seed: {c.key.rate for c in sweeps[seed]} & {c.key.rate for c in others[seed]}
        for seed in sorted(set(sweeps) & set(others))
    }
    return _only(sweeps, rates), _only(others, rates)


def _only(sweeps: Sweeps, rates: dict[int, set[float]]) -> Sweeps:
    return {
        seed: [cell for cell in sweeps[seed] if cell.key.rate in wanted]
        for seed, wanted in rates.items()
        if wanted
    }


def lengths_seen(cells: Sequence[CellFigures]) -> tuple[float, float, float | None]:
    """Mean output, mean absolute error and mean rank correlation (None: there is none) of the
    predictions of `cells`."""
    errors = [own(c).length_error for c in cells]
    known = [error for error in errors if error is not None]
    ranks = [rank for c in cells if (rank := own(c).length_rank) is not None]
    mean = sum(own(c).mean_output for c in cells) / len(cells)
    return (
        mean,
        sum(known) / len(known) if known else math.nan,
        sum(ranks) / len(ranks) if ranks else None,
    )
