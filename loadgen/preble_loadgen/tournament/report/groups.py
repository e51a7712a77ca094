"""Cells put side by side: the same setting, by policy and seed. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from preble_loadgen.tournament.cell import CellFigures, CellKey
from preble_loadgen.tournament.report.statistics import Estimate, estimate

OURS = "preble"
CACHE_BLIND = ("round_robin", "random", "least_loaded", "power_of_two")
"""Policies that know nothing of prefixes."""

SHARING_MIN = 0.05
"""A workload has sharing if some policy serves at least so much of its prompts from cache."""

Measure = Callable[[CellFigures], float]
MEASURES: dict[str, Measure] = {
    "mean TTFT": lambda cell: cell.ttft.mean,
    "p99 TTFT": lambda cell: cell.ttft.p99,
    "mean E2E": lambda cell: cell.e2e.mean,
    "p99 E2E": lambda cell: cell.e2e.p99,
}
"""What policies are compared by; in all of them less is better. Seconds."""

Seeds = Mapping[int, CellFigures]
"""The cells of one policy in one setting, by seed."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """Everything that cells to be compared have in common; all of their key but policy and seed."""

    section: str
    workload: str
    variant: str
    cost_model: str
    num_workers: int
    local_policy: str
    faults: tuple[str, ...]
    load: float
    rate: float

    @classmethod
    def of(cls, key: CellKey) -> "Setting":
        """That of one cell. Rates are rounded: computed twice, they may differ in a last bit."""
        return cls(
            section=key.section,
            workload=key.workload,
            variant=key.variant,
            cost_model=key.cost_model,
            num_workers=key.num_workers,
            local_policy=key.local_policy,
            faults=tuple(key.faults),
            load=round(key.load, 6),
            rate=round(key.rate, 6),
        )

    @property
    def name(self) -> str:
        """The workload with its variant."""
        return f"{self.workload} ({self.variant})" if self.variant else self.workload

    @property
    def at_load(self) -> str:
        """The load in words; a setting without a rate has clients that wait for their answers."""
        return f"{self.load:g}" if self.rate else "closed loop"

    @property
    def sweep(self) -> "Setting":
        """What all loads of one sweep have in common."""
        return replace(self, load=0.0, rate=0.0)


def by_setting(cells: Iterable[CellFigures]) -> dict[Setting, dict[str, dict[int, CellFigures]]]:
    """Setting → policy → seed → cell, settings and policies in their order."""
    found: dict[Setting, dict[str, dict[int, CellFigures]]] = {}
    for cell in cells:
        policies = found.setdefault(Setting.of(cell.key), {})
        policies.setdefault(cell.key.policy, {})[cell.key.seed] = cell
    return {
        setting: {policy: found[setting][policy] for policy in sorted(found[setting], key=rank)}
        for setting in sorted(found)
    }


def by_sweep(
    cells: Iterable[CellFigures],
) -> dict[Setting, dict[str, dict[float, dict[int, CellFigures]]]]:
    """Sweep → policy → rate → seed → cell. Cells without a rate are left out."""
    found: dict[Setting, dict[str, dict[float, dict[int, CellFigures]]]] = {}
    for setting, policies in by_setting(cell for cell in cells if cell.key.rate).items():
        sweep = found.setdefault(setting.sweep, {})
        for policy, seeds in policies.items():
            sweep.setdefault(policy, {})[setting.rate] = seeds
    return found


def in_sections(cells: Iterable[CellFigures], *sections: str) -> list[CellFigures]:
    """Those of the named sections, without faults."""
    return [cell for cell in cells if cell.key.section in sections and not cell.key.faults]


def rank(policy: str) -> tuple[bool, str]:
    """Ours first, the others by name."""
    return (not is_own(policy), policy)


def is_own(policy: str) -> bool:
    """`preble`, or `preble` with a term switched off."""
    return re.match(rf"{OURS}($|\W|_)", policy) is not None


def over_seeds(seeds: Seeds, measure: Measure) -> Estimate:
    """The mean of a figure, with its interval."""
    return estimate(measure(cell) for cell in seeds.values())


def names_with_sharing(cells: Iterable[CellFigures]) -> set[str]:
    """Workloads (`Setting.name`) in which prompts have prefixes in common: see `SHARING_MIN`."""
    return {Setting.of(cell.key).name for cell in cells if cell.cached_share >= SHARING_MIN}
