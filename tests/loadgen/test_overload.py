"""Five times more than a cluster can do: what it lets in is in time, and it is soon well again.

All in virtual time, so the figures are the same on every machine.
"""

import pytest
from overload_helpers import (
    FLOOD_AT,
    TIMEOUT_SECONDS,
    arrivals,
    both,
    cluster,
    overload,
    sharing,
    tenant_arrivals,
)

from preble_loadgen.goodput import goodput_of
from preble_loadgen.report import RequestRecord
from preble_loadgen.simulator import simulate


@pytest.mark.parametrize("local_policy", ["preble_groups", "fcfs"])
def test_goodput_holds_and_comes_back(local_policy: str) -> None:
    seen = overload(seconds=6.0, num_workers=2, local_policy=local_policy, check_every=2.0)
    assert seen.requests_share >= 1.0
    assert seen.tokens_share >= 0.9
    assert seen.recovery_seconds <= 2.0
    assert seen.during.wasted_tokens < 0.15 * seen.during.good_tokens
    again = {r.error for r in seen.result.records if r.error}
    assert again <= {"overloaded", "deadline_exceeded"}


def test_a_steady_tenant_hardly_notices_a_greedy_one_from_when_it_comes() -> None:
    """Under the policies that know no tenants it waits for seconds."""
    scene = {"seconds": 5.0, "rate": 12.0, "num_workers": 2}
    unfair = sharing(policy="longest_prefix", local_policy="lpm", **scene)
    assert unfair.beside_p99 > 1.0
    fair = sharing(policy="d2lpm", local_policy="dlpm", **scene)
    assert fair.slower <= 1.5
    assert fair.tokens_per_second >= 0.95 * unfair.tokens_per_second


def steady_goodput(policy: str, local_policy: str) -> float:
    """Of a tenant whose requests have a second, beside one that comes with ten times as many, from
    then on."""
    steady = tenant_arrivals("steady", 0.0, 5.0, 12.0, seed=0)
    greedy = tenant_arrivals("greedy", FLOOD_AT, 5.0, 120.0, seed=1)
    requests, result = both(
        *(steady, greedy),
        policy=policy,
        local_policy=local_policy,
        num_workers=2,
        timeout_seconds=1.5,
    )
    own = [
        record
        for record in result.records
        if requests[record.index].tenant == "steady" and record.sent_at >= FLOOD_AT
    ]
    return goodput_of(own).good_share


def test_a_steady_tenant_with_deadlines_is_not_refused_for_a_greedy_one() -> None:
    assert steady_goodput("d2lpm", "dlpm") >= 0.97
    assert steady_goodput("longest_prefix", "lpm") < 0.8


def test_nobody_is_refused_where_there_is_no_overload() -> None:
    requests = arrivals((10.0, 40.0))
    seen = goodput_of(
        simulate(requests, cluster(num_workers=2, timeout_seconds=TIMEOUT_SECONDS)).records
    )
    assert seen.num_good == seen.num_sent == len(requests)


def test_a_bound_on_the_queue_bounds_the_first_token() -> None:
    requests = arrivals((4.0, 300.0))
    result = simulate(requests, cluster(num_workers=2, max_queue_seconds=1.0))
    waits = sorted(r.first_at - r.sent_at for r in result.records if r.first_at is not None)
    assert waits[int(0.9 * len(waits))] < 1.4
    seen = goodput_of(result.records)
    assert seen.num_refused > 0 and seen.num_late == 0
    assert seen.num_good + seen.num_refused == len(requests)


def test_goodput_counts_what_came_in_time() -> None:
    def record(index: int, seconds: float, error: str = "", tokens: int = 10) -> RequestRecord:
        return RequestRecord(
            index=index,
            scheduled_at=float(index),
            sent_at=float(index),
            ended_at=index + seconds,
            output_tokens=tokens,
            error=error,
        )

    records = [
        record(0, 1.0),
        record(1, 2.5),
        record(2, 0.0, "overloaded", tokens=0),
        record(3, 2.0, "deadline_exceeded", tokens=4),
        record(4, 1.0, tokens=7),
    ]
    seen = goodput_of(records, timeout_seconds=2.0)
    assert (seen.num_sent, seen.num_good, seen.num_refused, seen.num_late) == (5, 2, 1, 2)
    assert (seen.good_tokens, seen.wasted_tokens) == (17, 14)
    assert (seen.seconds, seen.tokens_per_second, seen.good_share) == (4.0, 17 / 4.0, 0.4)
    late = goodput_of(records, begin=2.0, end=4.0)
    assert (late.num_sent, late.num_good, late.seconds) == (2, 0, 2.0)
    assert goodput_of([]).good_share == 1.0
