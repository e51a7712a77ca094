"""One policy against another in the same setting, seed by seed. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report.groups import (
    MEASURES,
    OURS,
    Measure,
    Seeds,
    Setting,
    by_setting,
    is_own,
)
from preble_loadgen.tournament.report.statistics import Estimate, geometric_mean, ratio_estimate

NOISE = 1.02
"""A ratio within this of 1 is a tie, as is one whose interval reaches into it."""


class Verdict(StrEnum):
    """From our side."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Duel:
    """`ratio` is ours over the rival's, so that less than 1 is better for us."""

    setting: Setting
    rival: str
    measure: str
    ratio: Estimate

    @property
    def verdict(self) -> Verdict:
        """A loss if the whole interval lies above `NOISE`, a win if it lies below 1 / `NOISE`."""
        return verdict(self.ratio)


def verdict(ratio: Estimate) -> Verdict:
    """Of a ratio in which less is better."""
    if ratio.low > NOISE:
        return Verdict.LOSS
    return Verdict.WIN if ratio.high < 1.0 / NOISE else Verdict.TIE


def paired(ours: Seeds, theirs: Seeds, measure: Measure) -> Estimate | None:
    """Ratio of a figure over the seeds that both have; None without any.

    A seed in which one figure is 0 (nothing was answered) has no ratio and is left out.
    """
    pairs = [
        (measure(ours[seed]), measure(theirs[seed])) for seed in sorted(ours.keys() & theirs.keys())
    ]
    ratios = [mine / other for mine, other in pairs if mine > 0.0 and other > 0.0]
    return ratio_estimate(ratios) if ratios else None


def duels(cells: Iterable[CellFigures]) -> list[Duel]:
    """`preble` against every other policy, in every setting and measure that both have."""
    return [
        Duel(setting, rival, name, ratio)
        for setting, policies in by_setting(cells).items()
        if OURS in policies
        for rival, seeds in policies.items()
        if not is_own(rival)
        for name, measure in MEASURES.items()
        if (ratio := paired(policies[OURS], seeds, measure)) is not None
    ]


@dataclass(frozen=True, slots=True)
class Standing:
    """Some duels together."""

    num_duels: int
    verdicts: Mapping[Verdict, int]
    geometric_mean: float
    worst: Duel


def standing(of: Sequence[Duel]) -> Standing:
    """Of at least one duel."""
    return Standing(
        num_duels=len(of),
        verdicts=Counter(duel.verdict for duel in of),
        geometric_mean=geometric_mean([duel.ratio.mean for duel in of]),
        worst=max(of, key=lambda duel: duel.ratio.mean),
    )
