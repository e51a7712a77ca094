"""How the show of live against simulated policies judges."""

import pytest
from shows.policy_order import Live, Outcome, contradicted, firm_orders, paired, verdict

from preble_loadgen.report import RequestRecord, summarize

ORDERLY = {"fast": (0.1, 0.2), "slow": (0.2, 0.3)}


def _record(index: int, *, ttft: float, cached: int = 0, error: str = "") -> RequestRecord:
    return RequestRecord(
        index=index,
        scheduled_at=0.0,
        sent_at=0.0,
        first_at=ttft,
        ended_at=ttft,
        cached_tokens=cached,
        error=error,
    )


def _outcome(
    policy: str, live: float, simulated: tuple[float, ...], *, busy: float = 0.3, error: str = ""
) -> Outcome:
    records = [_record(0, ttft=live, error=error)]
    runs = [[_record(0, ttft=ttft)] for ttft in simulated]
    return Outcome(
        policy, Live(records, summarize(records), busy), runs, [summarize(run) for run in runs]
    )


def test_an_order_is_firm_where_every_run_has_it_by_the_margin() -> None:
    seconds = {"a": (1.0, 2.0), "b": (1.2, 2.4), "c": (1.3, 2.3)}
    assert firm_orders(seconds, margin=0.05) == [("a", "b"), ("a", "c")]
    assert firm_orders(seconds, margin=0.18) == [("a", "b")]
    assert firm_orders(seconds, margin=0.25) == []


def test_what_live_ties_or_turns_round_is_contradicted() -> None:
    orders = [("a", "b"), ("a", "c"), ("b", "c")]
    assert contradicted(orders, {"a": 1.0, "b": 1.0, "c": 0.9}) == orders
    assert contradicted(orders, {"a": 1.0, "b": 1.1, "c": 1.2}) == []


def test_pairs_are_of_the_same_request() -> None:
    live = [_record(1, ttft=0.25, cached=16), _record(0, ttft=0.5), _record(2, ttft=9.0)]
    simulated = [_record(0, ttft=0.4), _record(1, ttft=0.2, cached=32)]
    pairs = paired(live, simulated)
    assert (pairs.count, pairs.same_cached) == (2, 1)
    assert pairs.ttft_seconds == pytest.approx(0.075)


@pytest.mark.parametrize(
    ("live", "busy", "error", "judged"),
    [
        ({"fast": 0.12, "slow": 0.9}, 0.3, "", "PASSED"),
        ({"fast": 0.12, "slow": 0.1}, 0.3, "", "FAILED"),
        ({"fast": 0.12, "slow": 0.9}, 0.3, "worker_failed", "FAILED"),
        ({"fast": 0.12, "slow": 0.1}, 0.9, "", "NOT JUDGED: the machine was busy with other work"),
    ],
)
def test_it_passes_when_live_agrees_on_a_quiet_machine(
    live: dict[str, float], busy: float, error: str, judged: str
) -> None:
    outcomes = [
        _outcome(policy, live[policy], runs, busy=busy, error=error)
        for policy, runs in ORDERLY.items()
    ]
    assert verdict(outcomes) == judged


def test_nothing_firm_shows_nothing() -> None:
    same = [_outcome(policy, 0.1, (0.1, 0.1)) for policy in ("one", "other")]
    assert verdict(same) == "FAILED"
