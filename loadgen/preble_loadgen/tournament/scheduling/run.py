"""Simulates one cell of the study."""

import time
from dataclasses import replace
from pathlib import Path

from preble.cost_library import kv_capacity_tokens, load_cost_model
from preble_loadgen.simulator import SimulationOptions, simulate
from preble_loadgen.tournament.cell import CellFigures, CellKey, after_warm_up, figures
from preble_loadgen.tournament.scheduling.contests import (
    MAX_SEQUENCES,
    STATED_MAX_TOKENS,
    WORKER_CONTESTS,
    worker_load,
)
from preble_loadgen.tournament.worker_figures import worker_figures
from preble_router.lengths import DEFAULT as LENGTH_DEFAULT
from preble_worker.estimated_tiers import named_tiers

PAGE_TOKENS = 16
REPORT_SECONDS = 2.0
"""With one worker nothing depends on when the router hears of its steps."""
SILENCE_SECONDS = 60.0
"""So that the router does not take it for dead in between."""


def run_worker_cell(key: CellKey, traces: Path | None) -> CellFigures:
    """Simulate it.

    Raises:
        ConfigError: its trace cannot be read, or its model cannot have its tiers.
    """
    load, options = worker_load(key, traces), worker_options(key)
    began_at = time.perf_counter()
    result = simulate(load.requests, options, arrivals=load.arrivals, salt=load.salt)
    cell = figures(
        key,
        result,
        slo=WORKER_CONTESTS[key.workload].slo,
        wall_seconds=time.perf_counter() - began_at,
    )
    counted = after_warm_up(result.records)
    return replace(cell, worker=worker_figures(counted, result, options.cost))


def worker_options(key: CellKey) -> SimulationOptions:
    """One worker with the cell's policy, tiers and predictor.

    Raises:
        ConfigError: its model cannot have the tiers.
    """
    kv_tokens = kv_capacity_tokens(key.cost_model)
    return SimulationOptions(
        cost=load_cost_model(key.cost_model),
        num_workers=key.num_workers,
        policy=key.policy,
        local_policy=key.local_policy,
        kv_cache_tokens=kv_tokens,
        max_sequences=MAX_SEQUENCES,
        max_tokens=STATED_MAX_TOKENS,
        length_predictor=key.length_predictor or LENGTH_DEFAULT,
        length_noise=key.length_noise,
        tiers=named_tiers(key.cost_model, key.tiers, kv_tokens=kv_tokens, page_tokens=PAGE_TOKENS),
        page_tokens=PAGE_TOKENS,
        seed=key.seed,
        report_seconds=REPORT_SECONDS,
        silence_seconds=SILENCE_SECONDS,
        sample_every=0.0,
    )
