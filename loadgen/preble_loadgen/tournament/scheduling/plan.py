"""Which cells the study of scheduling has. Pure.

scheduling         local policies x requests x models x burstiness x loads, on one worker
scheduling-behind  preble before eight workers, with each local policy
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from preble.cost_library import load_cost_model
from preble_loadgen.simulator.options import ORACLE
from preble_loadgen.tournament.cell import CellKey
from preble_loadgen.tournament.contests import CONTESTS, REFERENCE
from preble_loadgen.tournament.contests import nominal_rate as cluster_rate
from preble_loadgen.tournament.scheduling.contests import WORKER_CONTESTS, nominal_rate
from preble_loadgen.tournament.scope import Scope

SECTION = "scheduling"
BEHIND = "scheduling-behind"
MULTI_HEAD = "opt-13b-a100-40gb"
GROUPED = "llama-3-8b-h100"
POISSON, BURSTS = 1.0, 4.0
LOADS = {POISSON: (0.5, 0.75, 1.0, 1.4, 2.0), BURSTS: (0.03, 0.1, 0.3, 0.5, 0.75)}
"""By the CV of the arrivals: bursts break objectives at lower rates."""
FARTHER: dict[float, dict[str, tuple[float, ...]]] = {
    POISSON: {"alpaca": (2.8,), "sharegpt": (2.8,)},
    BURSTS: {"alpaca": (1.0, 1.4)},
}
"""Further loads, of requests that keep their latency at those of `LOADS`."""
GRIDS = (
    (1, MULTI_HEAD, POISSON),
    (1, GROUPED, POISSON),
    (1, MULTI_HEAD, BURSTS),
    (1, GROUPED, BURSTS),
    (2, MULTI_HEAD, POISSON),
    (2, MULTI_HEAD, BURSTS),
)
"""Seed, model and CV, those first that say most: a second seed where the published claims were
made."""
NOISE = 0.7
"""Standard deviation of the logarithm of an oracle's error: a middling predictor."""
SWAPPED = ("host", "int8")
HYBRIDS = (("hidden",), ("int8-resident",), ("host", "int8-resident"))
"""Tiers of `adaptive`: Apt-Serve's second form, ours for any model, and all that pays."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to run a worker."""

    local_policy: str
    tiers: tuple[str, ...] = ()
    length_predictor: str = ""
    length_noise: float = 0.0


CONTENDERS = (
    Contender("fcfs"),
    Contender("alise", SWAPPED, ORACLE),
    Contender("adaptive"),
    *(Contender("adaptive", tiers) for tiers in HYBRIDS),
    Contender("srpt", (), ORACLE),
    Contender("preble_groups"),
    Contender("mlfq"),
    Contender("alise", SWAPPED),
    Contender("alise", SWAPPED, ORACLE, NOISE),
    Contender("alise"),
    Contender("srpt"),
    Contender("lpm"),
)
"""Those first that say most."""
BY_PREFIX = ("lpm", "preble_groups")
"""Which are `fcfs` where nothing is cached."""

BEHIND_CONTESTS = ("tool_use", "embodied_agent", "programming", "video_qa", "long_documents")
BEHIND_WORKERS = 8
BEHIND_LOADS: tuple[float, ...] = (1.2, 1.0, 0.7)
BEHIND_SEEDS: tuple[int, ...] = (1, 2)
BEHIND_POLICIES = ("fcfs", "lpm", "preble_groups", "mlfq", "srpt", "alise", "adaptive")


def scheduling(scope: Scope) -> Iterator[CellKey]:
    """One worker. Hidden states only where they save memory: elsewhere they are refused."""
    for seed, model, cv in GRIDS[:1] if scope.quick else GRIDS:
        for name, contest in WORKER_CONTESTS.items():
            if contest.file and not scope.has_file(contest.file):
                continue
            if contest.has_own_clock and cv != POISSON:
                continue
            nominal = nominal_rate(contest, model)
            for contender, load in product(CONTENDERS, _loads(name, cv, quick=scope.quick)):
                if "hidden" in contender.tiers and model == GROUPED:
                    continue
                if contender.local_policy in BY_PREFIX and not contest.shares:
                    continue
                yield CellKey(
                    section=SECTION,
                    workload=name,
                    policy="round_robin",
                    local_policy=contender.local_policy,
                    num_workers=1,
                    cost_model=model,
                    rate=round(load * nominal, 6),
                    load=load,
                    seed=seed,
                    tiers=contender.tiers,
                    length_predictor=contender.length_predictor,
                    length_noise=contender.length_noise,
                    cv=0.0 if contest.has_own_clock else cv,
                )


def _loads(name: str, cv: float, *, quick: bool) -> tuple[float, ...]:
    if quick:
        return LOADS[cv][2:3]
    return (*LOADS[cv], *FARTHER[cv].get(name, ()))


def behind(scope: Scope) -> Iterator[CellKey]:
    """Eight workers behind `preble`, whose requests share prefixes."""
    cost = load_cost_model(REFERENCE)
    seeds, loads = BEHIND_SEEDS, BEHIND_LOADS
    if scope.quick:
        seeds, loads = seeds[:1], loads[:1]
    for seed, load, name, local_policy in product(seeds, loads, BEHIND_CONTESTS, BEHIND_POLICIES):
        yield CellKey(
            section=BEHIND,
            workload=name,
            policy="preble",
            local_policy=local_policy,
            num_workers=BEHIND_WORKERS,
            cost_model=REFERENCE,
            rate=round(load * BEHIND_WORKERS * cluster_rate(CONTESTS[name], cost), 6),
            load=load,
            seed=seed,
        )
