"""A live run beside a simulated one: what the rehearsal tells, and what is said."""

from dataclasses import replace

import pytest
from simulator_helpers import COST

from preble.errors import ConfigError
from preble_loadgen.report import RequestRecord, summarize
from preble_loadgen.simulator import SimulationOptions, simulate
from preble_loadgen.validation import Overhead, Validation, measured_overhead, rehearsal_length
from preble_loadgen.validation_text import agrees, as_markdown, rows
from preble_loadgen.workloads import WorkloadOptions, make_workload

CLUSTER = SimulationOptions(cost=COST, num_workers=2, wire_seconds=0.0, report_seconds=0.0)
REHEARSAL = make_workload("tool_use", WorkloadOptions(requests=40, workers=2, seed=3))
AT = [0.4 * i for i in range(len(REHEARSAL.requests))]


def rehearsed(overhead: Overhead) -> list[RequestRecord]:
    return simulate(REHEARSAL.requests, overhead.of(CLUSTER), arrivals=AT).records


def test_the_overhead_of_a_live_cluster_is_found() -> None:
    """The pretend live cluster is the simulator with a known overhead, and has queues."""
    truth = Overhead(turn_seconds=1.5e-3, wire_seconds=4e-3)
    found = measured_overhead(rehearsed(truth), rehearsed)
    assert found.turn_seconds == pytest.approx(truth.turn_seconds, rel=0.02)
    assert found.wire_seconds == pytest.approx(truth.wire_seconds, rel=0.05)


def test_first_requests_that_find_cold_code_do_not_count() -> None:
    truth = Overhead(turn_seconds=1e-3, wire_seconds=2e-3)
    live = [
        replace(r, first_at=(r.first_at or 0.0) + 0.2, last_at=(r.last_at or 0.0) + 0.9)
        if r.index < 10
        else r
        for r in rehearsed(truth)
    ]
    assert measured_overhead(live, rehearsed).turn_seconds == pytest.approx(1e-3, rel=0.02)


def test_a_cluster_faster_than_its_cost_model_has_no_overhead() -> None:
    fast = replace(CLUSTER, cost=replace(COST, fixed=0.5 * COST.fixed))
    live = simulate(REHEARSAL.requests, fast, arrivals=AT).records
    assert measured_overhead(live, rehearsed) == Overhead(0.0, 0.0)


def test_too_few_requests_to_rehearse_are_refused() -> None:
    assert rehearsal_length(33) == 11
    with pytest.raises(ConfigError, match="at least 33, not 32"):
        rehearsal_length(32)


def records(*, ttft: float, e2e: float, cached: int, error: str = "") -> list[RequestRecord]:
    return [
        RequestRecord(
            index=i,
            scheduled_at=float(i),
            sent_at=float(i),
            ended_at=i + e2e,
            first_at=i + ttft,
            last_at=i + e2e,
            prompt_tokens=1000,
            output_tokens=11,
            expected_output_tokens=11,
            cached_tokens=cached,
            finish_reason="" if error else "length",
            error=error,
        )
        for i in range(4)
    ]


def validation(simulated: list[RequestRecord]) -> Validation:
    return Validation(
        live=summarize(records(ttft=0.1, e2e=0.5, cached=600)),
        simulated=summarize(simulated),
        num_rehearsed=20,
        overhead=Overhead(1e-3, 2e-3),
        live_busy_seconds=2.0,
        simulated_busy_seconds=1.8,
    )


def test_runs_that_agree() -> None:
    both = validation(records(ttft=0.112, e2e=0.44, cached=605))
    assert agrees(both)
    table = as_markdown(both)
    assert "100.0 ms" in table and "112.0 ms" in table and "1.120 x" in table
    assert "60.00%" in table and "+0.50 points" in table
    assert "0.900 x" in table
    assert len({len(line) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("simulated", "off"),
    [
        (records(ttft=0.12, e2e=0.5, cached=600), "TTFT, mean"),
        (records(ttft=0.1, e2e=0.42, cached=600), "end to end, mean"),
        (records(ttft=0.1, e2e=0.5, cached=589), "cached share"),
    ],
)
def test_each_promise_is_kept_or_named(simulated: list[RequestRecord], off: str) -> None:
    both = validation(simulated)
    assert not agrees(both)
    assert [row.name for row in rows(both) if row.passes is False] == [off]


def test_a_failed_request_is_no_agreement() -> None:
    assert not agrees(validation(records(ttft=0.1, e2e=0.5, cached=600, error="lost")))
