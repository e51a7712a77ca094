"""Which cells the tournament has: policies x contests x loads x seeds, part by part. Pure.

peers         every policy on every contest, from idle to past saturation, on 4 workers
sizes         fewer cells on 2, 8, 64 and 512 workers
reproduction  e2 against round_robin where the published study measured
scenarios     the known failures of routers
robustness    stale and lost events, a slow worker, a worker that dies and returns, a router restart
ablation      preble with each of its terms off
local         the orders within a worker, behind preble

The studies of scheduling within workers are parts as well, but only where they are asked for.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

from preble.cost_library import load_cost_model
from preble_loadgen.tournament.cell import PUBLISHED_ORDER, CellKey
from preble_loadgen.tournament.contests import CONTESTS, REFERENCE, nominal_rate
from preble_loadgen.tournament.scheduling import plan as scheduling
from preble_loadgen.tournament.scope import Scope

LARGE = "llama-3-70b-4xh100"
LOADS = (0.4, 0.7, 1.0, 1.2, 1.5)
FEW_LOADS = (0.7, 1.2)
SEEDS = (1, 2)

CONTENDERS = (
    *("preble", "e2", "cache_aware", "cache_aware_spill", "kv_cost", "prefix_score_precise"),
    *("longest_prefix", "power_of_two"),
)
"""The policies that come near the front, and the best that sees no cache."""
OTHERS = (
    *("round_robin", "random", "least_loaded", "sticky", "bounded_hash", "prefix_score"),
    *("sigma_gate", "prefix_random", "ray_prefix", "cache_route"),
)
TERMS = ("wait", "own", "delay", "stall", "decode", "evict", "plan")
PUBLISHED = ("tool_use", "embodied_agent", "programming", "video_qa", "long_documents")
MAIN = (*PUBLISHED, "mixed", "mooncake", "no_sharing")
MORE = ("coding_agents", "airline_agents", "azure_code", "servegen")
VARIANTS = (
    *(("tool_use", "zipf"), ("tool_use", "bursty"), ("tool_use", "drift")),
    *(("tool_use", "hot-burst"), ("long_documents", "bursty"), ("video_qa", "zipf")),
)
FARTHER = {
    ("programming", ""): (2.0,),
    ("embodied_agent", ""): (2.0,),
    ("video_qa", "zipf"): (1.5, 2.0),
    ("tool_use", "bursty"): (0.4,),
    ("long_documents", "bursty"): (0.4,),
    ("azure_code", ""): (0.1, 0.2),
    ("servegen", ""): (0.4,),
}
"""Further loads, where the others do not reach from idle to past saturation."""
SCENARIOS = ("hot_prefix", "shared_system_prompt", "quiet_burst", "families")

FAULTS_AT = 20.0
FAULTS = {
    "stale events, 1 s": "stale:1",
    "1 % of events lost": "loss:0.01",
    "a worker 3x slower": f"slow:0@{FAULTS_AT:g}x3",
    "a worker dead for 10 s": f"death:0@{FAULTS_AT:g}+10",
    "router restarted": f"router@{FAULTS_AT:g}",
}


def plan(scope: Scope, parts: tuple[str, ...] = ()) -> list[CellKey]:
    """All cells of `parts`, or of all but the studies, those first that say most."""
    every = PARTS | STUDIES
    cells = (key for part in parts or tuple(PARTS) for key in every[part](scope))
    return list(dict.fromkeys(cells))


def _cells(
    scope: Scope,
    section: str,
    contests: tuple[tuple[str, str], ...],
    *,
    policies: tuple[str, ...],
    loads: tuple[float, ...],
    seeds: tuple[int, ...],
    sizes: tuple[int, ...] = (4,),
    cost_model: str = REFERENCE,
    local_policies: tuple[str, ...] = (PUBLISHED_ORDER,),
    faults: tuple[tuple[str, ...], ...] = ((),),
) -> Iterator[CellKey]:
    if scope.quick:
        loads, seeds = loads[len(loads) // 2 :][:1], seeds[:1]
    cost = load_cost_model(cost_model)
    for (name, variant), size, seed, load in product(contests, sizes, seeds, loads):
        contest = CONTESTS[name]
        if not scope.has(contest):
            continue
        rate = round(load * size * nominal_rate(contest, cost), 6)
        for policy, local_policy, fault in product(policies, local_policies, faults):
            yield CellKey(
                section=section,
                workload=name,
                variant=variant,
                policy=policy,
                local_policy=local_policy,
                num_workers=size,
                cost_model=cost_model,
                rate=rate,
                load=load,
                seed=seed,
                faults=fault,
            )


def _plain(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "") for name in names)


def _peers(scope: Scope) -> Iterator[CellKey]:
    main = _plain(*MAIN)
    more = (*_plain(*MORE), *VARIANTS)
    peers = partial(_cells, scope, "peers")
    yield from peers(main, policies=CONTENDERS, loads=FEW_LOADS, seeds=SEEDS)
    yield from peers(main, policies=CONTENDERS, loads=LOADS, seeds=SEEDS)
    yield from peers(more, policies=CONTENDERS, loads=FEW_LOADS, seeds=SEEDS)
    if not scope.quick:
        for contest, loads in FARTHER.items():
            yield from peers((contest,), policies=CONTENDERS, loads=loads, seeds=SEEDS)
    yield from peers((*main, *more), policies=OTHERS, loads=FEW_LOADS, seeds=SEEDS[:1])


def _sizes(scope: Scope) -> Iterator[CellKey]:
    few = _plain("tool_use", "long_documents")
    four = ("preble", "e2", "kv_cost", "cache_aware")
    yield from _cells(
        scope, "peers", few, policies=four, loads=FEW_LOADS, seeds=SEEDS[:1], sizes=(2, 8)
    )
    scaling = partial(_cells, scope, "scaling", loads=(0.7, 1.0, 1.2), seeds=SEEDS[:1])
    yield from scaling(few, policies=("preble", "e2"), sizes=(8, 64))
    yield from scaling(few[:1], policies=("preble",), sizes=(512,))


def _reproduction(scope: Scope) -> Iterator[CellKey]:
    both = partial(
        _cells,
        scope,
        "reproduction",
        _plain(*PUBLISHED),
        policies=("e2", "round_robin"),
        loads=(0.4, 0.7, 1.0),
        seeds=SEEDS[:1],
    )
    yield from both(sizes=(2, 4, 8))
    yield from both(sizes=(2,), cost_model=LARGE)


def _scenarios(scope: Scope) -> Iterator[CellKey]:
    policies = (*CONTENDERS, *OTHERS)
    yield from _cells(
        scope, "failures", _plain(*SCENARIOS), policies=policies, loads=(1.0,), seeds=SEEDS
    )


def _robustness(scope: Scope) -> Iterator[CellKey]:
    yield from _cells(
        scope,
        "robustness",
        _plain("tool_use"),
        policies=("preble", "e2", "cache_aware", "kv_cost", "prefix_score_precise", "round_robin"),
        loads=(0.7,),
        seeds=SEEDS,
        faults=((), *((fault,) for fault in FAULTS.values())),
    )


def _ablation(scope: Scope) -> Iterator[CellKey]:
    without = tuple(f"preble:{term}=0" for term in TERMS)
    yield from _cells(
        scope,
        "ablation",
        _plain("tool_use", "embodied_agent", "video_qa", "long_documents", "mooncake", "families"),
        policies=("preble", *without),
        loads=(1.0,),
        seeds=SEEDS,
    )


def _local(scope: Scope) -> Iterator[CellKey]:
    yield from _cells(
        scope,
        "local",
        _plain(*PUBLISHED),
        policies=("preble",),
        loads=(1.2,),
        seeds=SEEDS,
        local_policies=("fcfs", "lpm", "preble_groups"),
    )


PARTS: dict[str, Callable[[Scope], Iterator[CellKey]]] = {
    "peers": _peers,
    "scenarios": _scenarios,
    "reproduction": _reproduction,
    "ablation": _ablation,
    "robustness": _robustness,
    "local": _local,
    "sizes": _sizes,
}

STUDIES: dict[str, Callable[[Scope], Iterator[CellKey]]] = {
    scheduling.SECTION: scheduling.scheduling,
    scheduling.BEHIND: scheduling.behind,
}
