"""Hand-made cells, and a whole made-up tournament to look at the report with.

`python tests/tournament_helpers.py FOLDER` writes report.html and TOURNAMENT.md of made-up figures.
"""

import random
import sys
from dataclasses import replace
from pathlib import Path

from preble_loadgen.tournament.cell import CellFigures, CellKey, Slo, Summary
from preble_router.policies import POLICY_NAMES

FAULTS = ("stale:1.0", "loss:0.01", "slow:0:3", "router_restart")


def make_cell(
    *,
    section: str = "peers",
    workload: str = "tool_use",
    policy: str = "preble",
    num_workers: int = 4,
    rate: float = 10.0,
    load: float | None = None,
    seed: int = 0,
    variant: str = "",
    local_policy: str = "preble_groups",
    faults: tuple[str, ...] = (),
    mean: float = 0.5,
    p99: float | None = None,
    e2e: float | None = None,
    cached: float = 0.5,
    imbalance: float = 1.1,
    within: float = 1.0,
    failed: int = 0,
    load_over_time: tuple[tuple[float, tuple[float, ...]], ...] = (),
) -> CellFigures:
    """A cell with the figures that a test speaks of; the others follow from them."""
    tail = 4.0 * mean if p99 is None else p99
    whole = mean + 5.0 if e2e is None else e2e
    steps = [index / 100.0 for index in range(101)]
    return CellFigures(
        key=CellKey(
            section=section,
            workload=workload,
            variant=variant,
            policy=policy,
            local_policy=local_policy,
            num_workers=num_workers,
            cost_model="mistral-7b-a6000",
            rate=rate,
            load=rate / 10.0 if load is None else load,
            seed=seed,
            faults=faults,
        ),
        num_requests=1000,
        num_failed=failed,
        duration_seconds=100.0,
        wall_seconds=1.0,
        digest="0" * 16,
        ttft=Summary(mean=mean, p50=0.7 * mean, p90=2.0 * mean, p99=tail),
        e2e=Summary(mean=whole, p50=whole, p90=2.0 * whole, p99=3.0 * whole),
        gap=Summary(mean=0.02, p50=0.02, p90=0.05, p99=0.2),
        cached_share=cached,
        predicted_share=cached,
        busy_imbalance=imbalance,
        largest_share=min(1.0, imbalance / num_workers),
        requests_per_second=rate,
        within_slo=within,
        slo=Slo(ttft=2.0, tbt=1.0),
        ttft_quantiles=tuple(mean * 0.3 * (1.0 + 12.0 * step**8) for step in steps),
        load_over_time=load_over_time,
        worker_requests=(1000 // num_workers,) * num_workers,
    )


def made_up_tournament() -> list[CellFigures]:
    """Cells of every section, with plausible latencies from a queue's formula. Seeded."""
    rng = random.Random(0)
    strength = {policy: rng.uniform(0.7, 1.1) for policy in POLICY_NAMES} | {"preble": 1.3}
    cells: list[CellFigures] = []
    for workload in ("tool_use", "video_qa", "programming", "long_documents", "no_sharing"):
        for load in (0.3, 0.5, 0.7, 0.9, 1.1, 1.3):
            for policy in POLICY_NAMES:
                for seed in range(3):
                    cells.append(
                        _queue(rng, "peers", workload, policy, load, seed, strength[policy])
                    )
                    if workload == "tool_use" and policy in ("e2", "round_robin", "preble"):
                        twin = cells[-1]
                        cells.append(replace(twin, key=replace(twin.key, section="reproduction")))
    for policy in ("preble", "e2", "round_robin", "cache_aware"):
        for seed in range(3):
            for faults in ((), *((fault,) for fault in FAULTS)):
                slow = strength[policy] * (0.9 if faults else 1.0)
                cell = _queue(rng, "robustness", "tool_use", policy, 0.9, seed, slow)
                cells.append(replace(cell, key=replace(cell.key, faults=faults)))
            for workers in (8, 64, 512):
                for load in (0.5, 0.9, 1.3):
                    cell = _queue(rng, "scaling", "tool_use", policy, load, seed, strength[policy])
                    key = replace(cell.key, num_workers=workers, rate=2.5 * workers * load)
                    cells.append(replace(cell, key=key, requests_per_second=key.rate))
    for policy in POLICY_NAMES:
        for workload in ("hot_prefix", "families"):
            cell = _queue(rng, "failures", workload, policy, 0.9, 0, strength[policy])
            cells.append(replace(cell, key=replace(cell.key, rate=0.0, load=0.0)))
    for term in ("preble", "preble:no-plan", "preble:no-harm", "preble:no-evict"):
        for seed in range(3):
            cell = _queue(rng, "ablation", "tool_use", term, 0.9, seed, 1.3 - 0.03 * len(term[6:]))
            cells.append(cell)
    for local in ("fcfs", "lpm", "preble_groups"):
        for seed in range(3):
            cell = _queue(rng, "local", "tool_use", "preble", 0.9, seed, 1.2)
            cells.append(replace(cell, key=replace(cell.key, local_policy=local)))
    return cells


def _queue(
    rng: random.Random,
    section: str,
    workload: str,
    policy: str,
    load: float,
    seed: int,
    strength: float,
) -> CellFigures:
    used = load / strength * rng.uniform(0.97, 1.03)
    mean = 0.15 / max(0.03, 1.0 - used) if used < 0.97 else 5.0 + 40.0 * (used - 0.97)
    cached = 0.0 if workload == "no_sharing" else min(0.9, 0.6 * strength)
    keep = section == "peers" and workload == "tool_use" and load == 0.9 and seed == 0
    return make_cell(
        section=section,
        workload=workload,
        policy=policy,
        rate=10.0 * load,
        load=load,
        seed=seed,
        mean=mean,
        cached=cached,
        imbalance=1.0 + rng.uniform(0.02, 0.6),
        within=1.0 if 4.0 * mean < 2.0 else max(0.0, 1.0 - 0.1 * mean),
        load_over_time=tuple(
            (float(at), tuple(rng.expovariate(1.0 / (1000.0 * mean)) for _ in range(4)))
            for at in range(60)
        )
        if keep
        else (),
    )


if __name__ == "__main__":
    from preble_loadgen.tournament.report import write_report

    folder = Path(sys.argv[1])
    write_report(
        made_up_tournament(),
        html=folder / "report.html",
        markdown=folder / "TOURNAMENT.md",
        circumstances={"command": "made up", "date": "2026-01-01"},
    )
