"""Runs what is missing of the tournament, several cells at once, and keeps each when it is done."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from random import Random

from preble.cost import CostModel
from preble.cost_library import kv_capacity_tokens, load_cost_model
from preble.page_keys import num_tokens, pack_tokens, page_keys
from preble_loadgen.oracle import Arrival, best_placement
from preble_loadgen.prompts import PromptMaker, seeded
from preble_loadgen.simulation_cells import CellFailed, Load, begin_process
from preble_loadgen.simulator import SimulationOptions, parse_fault, simulate
from preble_loadgen.tournament.cell import CellFigures, CellKey, figures, with_oracle
from preble_loadgen.tournament.contests import CONTESTS, load_of, slo_of
from preble_loadgen.tournament.scheduling.plan import SECTION
from preble_loadgen.tournament.scheduling.run import run_worker_cell
from preble_loadgen.tournament.store import CellStore

ORACLE_REQUESTS_MAX = 1500


def run_cell(key: CellKey, traces: Path | None) -> CellFigures:
    """Simulate one cell.

    Raises:
        ConfigError: the cell's trace cannot be read.
    """
    if key.section == SECTION:
        return run_worker_cell(key, traces)
    cost, contest = load_cost_model(key.cost_model), CONTESTS[key.workload]
    load = load_of(key, traces)
    options = SimulationOptions(
        cost=cost,
        num_workers=key.num_workers,
        policy=key.policy,
        local_policy=key.local_policy,
        kv_cache_tokens=kv_capacity_tokens(key.cost_model),
        seed=key.seed,
        faults=tuple(map(parse_fault, key.faults)),
    )
    began_at = time.perf_counter()
    result = simulate(load.requests, options, arrivals=load.arrivals, salt=load.salt)
    cell = figures(
        key,
        result,
        slo=slo_of(contest, load, cost),
        wall_seconds=time.perf_counter() - began_at,
        families=_families(load) if contest.has_families else (),
        with_load=key.seed == 1 and key.num_workers <= 8 and key.load == 1.0,
    )
    return _beside_oracle(cell, load, cost, options) if _has_oracle(key, load) else cell


def run_missing(
    store: CellStore,
    keys: Sequence[CellKey],
    *,
    traces: Path | None,
    jobs: int,
    on_done: Callable[[CellFigures], None] = lambda cell: None,
) -> None:
    """Simulate those of `keys` that `store` lacks; what is done stays done if this is broken off.

    Raises:
        ConfigError: a trace cannot be read.
        CellFailed: a process was ended from outside, for want of memory for instance.
    """
    pool = ProcessPoolExecutor(
        max_workers=jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=begin_process,
    )
    try:
        futures = [pool.submit(run_cell, key, traces) for key in store.missing(keys)]
        for future in as_completed(futures):
            cell = future.result()
            store.put(cell)
            on_done(cell)
    except BrokenProcessPool as error:
        raise CellFailed("a cell's process was ended; is there enough memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _families(load: Load) -> list[int]:
    """The prefix that each request shares with its family, which its prompt begins with."""
    return [request.segments[0].id for request in load.requests]


def _has_oracle(key: CellKey, load: Load) -> bool:
    """Once per contest and load: where all arrivals are known, and few enough for the search."""
    return (
        key.section == "peers"
        and key.policy == "preble"
        and key.seed == 1
        and CONTESTS[key.workload].shares
        and len(load.requests) <= ORACLE_REQUESTS_MAX
        and all(request.think_seconds is None for request in load.requests)
    )


def _beside_oracle(
    cell: CellFigures, load: Load, cost: CostModel, options: SimulationOptions
) -> CellFigures:
    prompts = PromptMaker(vocab_size=options.vocab_size, salt=seeded(load.salt, options.seed))
    arrivals = []
    for request, at in zip(load.requests, load.arrivals, strict=True):
        tokens = pack_tokens(prompts.tokens(request))
        keys = page_keys(tokens, page_tokens=options.page_tokens)
        arrivals.append(Arrival(at, keys, num_tokens(tokens)))
    placement = best_placement(
        arrivals, cost, num_workers=options.num_workers, rng=Random(cell.key.seed)
    )
    return with_oracle(cell, placement.mean_ttft)
