"""The study of scheduling within a worker: its loads, its cells, and what is derived from them."""

import gzip
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tournament_helpers import make_cell

from preble.cost_library import load_cost_model
from preble.errors import ConfigError
from preble_loadgen.formats.length_pairs import read_length_pairs
from preble_loadgen.report import RequestRecord
from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.plan import PARTS, STUDIES, plan
from preble_loadgen.tournament.report.behind import behind_chapter
from preble_loadgen.tournament.report.scheduling import scheduling_chapter
from preble_loadgen.tournament.report.worker_sweeps import (
    by_field,
    common,
    effective_throughput,
    equal_latency_throughput,
    gain,
    highest_rate,
)
from preble_loadgen.tournament.run import run_cell
from preble_loadgen.tournament.scheduling.contests import (
    WORKER_CONTESTS,
    gamma_arrivals,
    nominal_rate,
    saturation,
    worker_load,
)
from preble_loadgen.tournament.scheduling.plan import BEHIND, GROUPED, MULTI_HEAD, SECTION
from preble_loadgen.tournament.scheduling.run import worker_options
from preble_loadgen.tournament.scope import Scope
from preble_loadgen.tournament.worker_figures import (
    WorkerFigures,
    alone_seconds,
    is_starved,
    longest_wait,
)
from preble_worker.estimated_tiers import named_tiers

EVERYTHING = Scope(has=lambda contest: True)
WITHOUT_TRACES = Scope(has=lambda contest: not contest.file, has_file=lambda name: False)
FIGURES = WorkerFigures(
    normalised_latency=0.05,
    alone_latency=0.025,
    starved_share=0.0,
    longest_wait=1.0,
    swap_bytes=0,
    preemptions=0,
    swaps=0,
    hidden_starts=0,
    mean_output=100.0,
    length_error=30.0,
    length_rank=None,
)


def cell(rate: float, *, who: str = "fcfs", stretch: float, within: float = 1.0) -> CellFigures:
    """Of OPT-13B under ShareGPT, with a latency of so many times that alone."""
    made = make_cell(section=SECTION, workload="sharegpt", rate=rate, within=within)
    key = replace(made.key, local_policy=who, cost_model=MULTI_HEAD, cv=1.0, load=1.4)
    worker = replace(FIGURES, normalised_latency=stretch * FIGURES.alone_latency)
    return replace(made, key=key, worker=worker)


def record(prompt: int, output: int, *, gaps: tuple[float, ...] = ()) -> RequestRecord:
    return RequestRecord(
        index=0,
        scheduled_at=0.0,
        sent_at=1.0,
        first_at=3.0,
        last_at=5.0,
        ended_at=5.0,
        gaps=gaps,
        prompt_tokens=prompt,
        output_tokens=output,
    )


# Derived figures


def brute_force(points: list[tuple[float, float]], limit: float) -> float:
    """Of 20,000 rates, the highest at which the figure, drawn as straight lines, is kept."""
    low, high = points[0][0], points[-1][0]
    best = low
    for step in range(20_001):
        rate = low + (high - low) * step / 20_000
        for (a, left), (b, right) in pairwise(points):
            if a <= rate <= b and left + (right - left) * (rate - a) / (b - a) <= limit:
                best = rate
    return best


def test_the_highest_rate_is_what_brute_force_finds() -> None:
    rng = random.Random(1)
    for _ in range(25):
        rates = sorted(rng.uniform(1.0, 10.0) for _ in range(5))
        figures = [0.0, *(rng.random() for _ in range(4))]
        points = list(zip(rates, figures, strict=True))
        found, at_least, at_most = highest_rate(points, 0.5)
        assert found == pytest.approx(brute_force(points, 0.5), abs=0.001)
        assert (at_least, at_most) == (figures[-1] <= 0.5, False)


def test_a_sweep_that_never_keeps_its_limit_is_a_bound_from_above() -> None:
    assert highest_rate([(1.0, 0.9), (2.0, 0.8)], 0.5) == (1.0, False, True)


def test_effective_throughput_is_where_nine_in_ten_are_within() -> None:
    sweep = [
        cell(1.0, stretch=1.0, within=1.0),
        cell(2.0, stretch=1.0, within=0.95),
        cell(4.0, stretch=1.0, within=0.75),
    ]
    assert effective_throughput({1: sweep}).rate.mean == pytest.approx(2.5)


def test_throughput_at_equal_latency_crosses_in_the_logarithm() -> None:
    sweep = [cell(1.0, stretch=1.0), cell(3.0, stretch=4.0)]
    found = equal_latency_throughput({1: sweep}, 2.0)
    assert found.rate.mean == pytest.approx(1.0 + 2.0 * math.log(2.0) / math.log(4.0))
    assert not found.at_least and not found.at_most


def test_a_gain_says_where_it_is_only_a_bound() -> None:
    breaks = effective_throughput({1: [cell(1.0, stretch=1.0), cell(3.0, stretch=1.0, within=0.8)]})
    holds = effective_throughput({1: [cell(1.0, stretch=1.0), cell(3.0, stretch=1.0)]})
    assert gain(breaks, breaks).text == "1.00×"
    assert gain(holds, breaks).text == "≥ 1.50×"
    assert gain(breaks, holds).text == "≤ 0.67×"
    assert gain(holds, holds).text == "~ 1.00×"


def test_gains_compare_the_same_rates_and_seeds() -> None:
    ours = {1: [cell(r, stretch=1.0) for r in (1.0, 2.0)], 2: [cell(1.0, stretch=1.0)]}
    theirs = {1: [cell(r, stretch=1.0) for r in (2.0, 4.0)]}
    for sweeps in common(ours, theirs):
        assert {seed: [c.key.rate for c in sweep] for seed, sweep in sweeps.items()} == {1: [2.0]}


def test_alone_is_its_steps_one_by_one() -> None:
    cost = load_cost_model(MULTI_HEAD)
    prompt, output = 300, 50
    steps = [
        cost.step_seconds(
            prefill_tokens=prompt, attention=prompt * prompt / 2.0, decodes=0, context_tokens=0
        )
    ]
    steps += [
        cost.step_seconds(prefill_tokens=0, attention=0, decodes=1, context_tokens=prompt + done)
        for done in range(1, output)
    ]
    assert alone_seconds(record(prompt, output), cost) == pytest.approx(sum(steps), rel=1e-3)


def test_who_starves_waits_long_and_out_of_proportion() -> None:
    assert is_starved(60.0, 2.0)
    assert not is_starved(31.0, 2.0)  # less than 30 s longer
    assert not is_starved(60.0, 10.0)  # less than 10 times longer


def test_the_longest_wait_is_for_the_first_token_or_a_later_one() -> None:
    assert longest_wait(record(10, 3, gaps=(0.5, 1.5))) == 2.0
    assert longest_wait(record(10, 3, gaps=(0.5, 4.5))) == 4.5


# Loads


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_arrivals_have_their_rate_and_their_burstiness(cv: float) -> None:
    times = gamma_arrivals(20_000, 5.0, cv=cv, seed=1)
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(0.2)
    assert deviation / mean == pytest.approx(cv, rel=0.1)


def test_a_sweep_has_the_same_requests_at_every_rate_and_cv() -> None:
    keys = [
        key
        for key in plan(WITHOUT_TRACES, (SECTION,))
        if (key.workload, key.local_policy, key.seed) == ("alpaca", "fcfs", 1)
        and key.cost_model == MULTI_HEAD
    ]
    loads = [worker_load(key, None) for key in keys]
    assert len(keys) > 5 and len({load.arrivals[9] for load in loads}) == len(keys)
    assert all(load.requests == loads[0].requests for load in loads)
    slo = WORKER_CONTESTS["alpaca"].slo
    stated = {(r.ttft_slo_seconds, r.tbt_slo_seconds) for r in loads[0].requests}
    assert stated == {(slo.ttft, slo.tbt)}


def test_saturation_is_what_a_full_cache_of_requests_takes() -> None:
    cost = load_cost_model(MULTI_HEAD)
    # 20 requests of 500 + 2 tokens fit: 4 steps of all 20 and 20 prefills.
    step = cost.step_seconds(prefill_tokens=0, attention=0, decodes=20, context_tokens=20 * 502)
    seconds = 20 * cost.prefill_seconds(500.0, 0.0) + 4 * step
    assert saturation(500, 4, cost, kv_tokens=20 * 502) == pytest.approx(20 / seconds)


def test_load_one_is_more_on_the_faster_worker() -> None:
    for contest in WORKER_CONTESTS.values():
        if not contest.has_own_clock:
            assert nominal_rate(contest, GROUPED) > nominal_rate(contest, MULTI_HEAD)


def test_pairs_of_lengths_are_read_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv.gz"
    text = "num_decode_tokens,num_prefill_tokens,x\n5,74,1\n7,0,1\n9,3,1\n"
    path.write_bytes(gzip.compress(text.encode()))
    assert read_length_pairs(path) == [(74, 5), (3, 9)]
    path.write_text(text.replace("74", "many"))
    with pytest.raises(ConfigError, match=r"pairs\.csv\.gz, line 2"):
        read_length_pairs(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no columns num_prefill_tokens"):
        read_length_pairs(path)


# Cells


def test_the_studies_run_only_where_they_are_named() -> None:
    assert not {key.section for key in plan(EVERYTHING)} & {SECTION, BEHIND}
    assert not set(PARTS) & set(STUDIES)
    keys = plan(EVERYTHING, tuple(STUDIES))
    assert len({key.file_name for key in keys}) == len(keys)
    assert {key.section for key in keys} == {SECTION, BEHIND}


def test_hidden_states_are_refused_where_they_save_no_memory() -> None:
    planned = [key for key in plan(EVERYTHING, (SECTION,)) if "hidden" in key.tiers]
    assert {key.cost_model for key in planned} == {MULTI_HEAD}
    with pytest.raises(ConfigError, match="saves no memory"):
        named_tiers(GROUPED, ("hidden",), kv_tokens=1000, page_tokens=16)


def test_every_planned_contender_can_be_run() -> None:
    for key in {replace(k, workload="", rate=1.0, load=1.0) for k in plan(EVERYTHING, (SECTION,))}:
        worker_options(key).check()


def test_a_cell_tells_of_its_worker_and_survives_its_file() -> None:
    key = next(
        key
        for key in plan(WITHOUT_TRACES, (SECTION,))
        if key.workload == "humaneval" and key.tiers == ("host", "int8")
    )
    found = run_cell(replace(key, rate=key.rate * 3.0), None)
    assert CellFigures.from_json(found.to_json()) == found
    assert found.num_failed == 0 and found.worker is not None
    assert found.worker.normalised_latency > found.worker.alone_latency
    assert found.worker.preemptions >= found.worker.swaps > 0
    assert found.worker.longest_wait >= found.ttft.p99


# The report


def test_the_chapter_has_the_ratio_to_fcfs() -> None:
    cells = [
        cell(1.0, stretch=1.0),
        cell(3.0, stretch=4.0, within=0.8),
        cell(1.0, who="alise", stretch=1.0),
        cell(3.0, who="alise", stretch=1.5),
    ]
    chapter = scheduling_chapter(cells)
    assert chapter is not None
    tables = {table.title: table for table in chapter.tables}
    effective = tables[f"Effective throughput: {MULTI_HEAD}, CV 1"]
    assert [row.cells for row in effective.rows] == [("fcfs", "2"), ("alise", "≥ 3 (≥ 1.50×)")]
    claim = next(table for title, table in tables.items() if title.startswith("ALISE"))
    assert claim.rows[0].cells[:4] == ("sharegpt", "alise", "2.1×", "≥ 1.50×")
    assert by_field(cells).keys() == by_field(reversed(cells)).keys()


def test_no_chapter_without_cells() -> None:
    assert scheduling_chapter([make_cell()]) is None
    assert behind_chapter([make_cell()]) is None


def test_local_policies_are_held_against_fcfs_place_by_place() -> None:
    cells = [
        make_cell(
            section=BEHIND, local_policy=policy, workload=name, load=load, mean=mean, e2e=mean
        )
        for name, policy, load, mean in (
            ("tool_use", "fcfs", 0.7, 1.0),
            ("tool_use", "alise", 0.7, 2.0),
            ("video_qa", "fcfs", 0.7, 1.0),
            ("video_qa", "alise", 0.7, 8.0),
            ("video_qa", "fcfs", 1.2, 1.0),
            ("video_qa", "alise", 1.2, 0.5),
            ("video_qa", "lpm", 1.2, 2.0),
        )
    ]
    chapter = behind_chapter(cells)
    assert chapter is not None
    rows = [row.cells for row in chapter.tables[0].rows]
    assert rows == [
        ("0.7", "fcfs", "2", "1", "1", "1", "1", "1"),
        ("0.7", "alise", "2", "4", "4", "4", "4", "8"),
        ("1.2", "fcfs", "1", "1", "1", "1", "1", "1"),
        ("1.2", "alise", "1", "0.5", "0.5", "0.5", "0.5", "0.5"),
        ("1.2", "lpm", "1", "2", "2", "2", "2", "2"),
    ]
