"""Capacity: the highest rate at which a policy still keeps the SLO. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from preble_loadgen.tournament.cell import SLO_SHARE, CellFigures
from preble_loadgen.tournament.report.groups import (
    CACHE_BLIND,
    OURS,
    Setting,
    by_sweep,
    is_own,
)
from preble_loadgen.tournament.report.statistics import Estimate, estimate


@dataclass(frozen=True, slots=True)
class Capacity:
    """In requests/s of the whole cluster.

    Attributes:
        at_least: in some seed even the highest rate was kept; the rate is then taken as it is.
        at_most: in some seed not even the lowest was; it is then taken as the capacity.
    """

    rate: Estimate
    at_least: bool
    at_most: bool


@dataclass(frozen=True, slots=True)
class CapacityRow:
    """One sweep: every policy's capacity, and the rivals that count. Rivals may be missing."""

    setting: Setting
    of: dict[str, Capacity]
    best_rival: str | None
    best_blind: str | None

    def ratio(self, rival: str | None) -> float | None:
        """Ours over the rival's; more is better.

        None where both are bounds on the same side: the sweep has not told which carries more.
        """
        if rival is None or OURS not in self.of:
            return None
        own, other = self.of[OURS], self.of[rival]
        if (own.at_most and other.at_most) or (own.at_least and other.at_least):
            return None
        return own.rate.mean / other.rate.mean


def is_kept(cell: CellFigures) -> bool:
    """Whether p99 TTFT lies within the SLO, and 90 % of the requests within both SLOs."""
    return cell.ttft.p99 <= cell.slo.ttft and cell.within_slo >= SLO_SHARE


def capacity_of_seed(cells: Iterable[CellFigures]) -> tuple[float, bool, bool]:
    """Of one seed's sweep: requests/s, whether it is a lower and whether an upper bound.

    Between the highest rate that is kept and the next one, which is not, the logarithm of p99 TTFT
    and the share within the SLOs are each taken as straight lines over the rate; the capacity is
    where the first of them crosses its limit.
    """
    sweep = sorted(cells, key=lambda cell: cell.key.rate)
    kept = [index for index, cell in enumerate(sweep) if is_kept(cell)]
    if not kept:
        return sweep[0].key.rate, False, True
    if kept[-1] == len(sweep) - 1:
        return sweep[-1].key.rate, True, False
    good, bad = sweep[kept[-1]], sweep[kept[-1] + 1]
    part = min(_latency_crossing(good, bad), _share_crossing(good, bad))
    return good.key.rate + part * (bad.key.rate - good.key.rate), False, False


def _latency_crossing(good: CellFigures, bad: CellFigures) -> float:
    """Part of the way from `good` to `bad` at which p99 TTFT reaches the SLO; 1 if never."""
    if bad.ttft.p99 <= bad.slo.ttft:
        return 1.0
    low, high = math.log(max(good.ttft.p99, 1e-6)), math.log(bad.ttft.p99)
    return (math.log(good.slo.ttft) - low) / (high - low)


def _share_crossing(good: CellFigures, bad: CellFigures) -> float:
    """The same for the share within both SLOs."""
    if bad.within_slo >= SLO_SHARE:
        return 1.0
    return (good.within_slo - SLO_SHARE) / (good.within_slo - bad.within_slo)


def capacity(seeds: Sequence[Sequence[CellFigures]]) -> Capacity:
    """Over at least one seed, each with its sweep."""
    found = [capacity_of_seed(sweep) for sweep in seeds]
    return Capacity(
        rate=estimate(rate for rate, _, _ in found),
        at_least=any(at_least for _, at_least, _ in found),
        at_most=any(at_most for _, _, at_most in found),
    )


def capacities(cells: Iterable[CellFigures]) -> list[CapacityRow]:
    """Of every sweep of at least two rates."""
    rows = []
    for setting, policies in by_sweep(cells).items():
        found = {}
        for policy, rates in policies.items():
            sweeps: dict[int, list[CellFigures]] = {}
            for seeds in rates.values():
                for seed, cell in seeds.items():
                    sweeps.setdefault(seed, []).append(cell)
            if swept := [sweep for sweep in sweeps.values() if len(sweep) > 1]:
                found[policy] = capacity(swept)
        if found:
            rows.append(_row(setting, found))
    return rows


def _row(setting: Setting, found: dict[str, Capacity]) -> CapacityRow:
    rivals = [policy for policy in found if not is_own(policy)]
    blind = [policy for policy in rivals if policy in CACHE_BLIND]

    # An upper bound is the lowest rate of a sweep, and some policies were not swept as low.
    def worth(policy: str) -> tuple[bool, float]:
        return not found[policy].at_most, found[policy].rate.mean

    return CapacityRow(
        setting=setting,
        of=found,
        best_rival=max(rivals, key=worth, default=None),
        best_blind=max(blind, key=worth, default=None),
    )
