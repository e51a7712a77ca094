"""The scheduler's placements, books and view of load, whatever the policy."""

import random

import pytest
from routing_helpers import pages, route, synced_scheduler, worker_spec
from scheduler_helpers import report, stored, view

from preble.errors import ConfigError
from preble.events import CacheSnapshot
from preble.types import LoadReport
from preble_router.policies import POLICY_NAMES, make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    Progress,
    RequestFailed,
    RequestFinished,
    SnapshotReceived,
    StepReport,
    WorkerDrained,
    WorkerJoined,
    WorkerLost,
    WorkerSuspended,
)

RNG = random.Random(7)
PATH = pages(RNG, 40)


# Placing


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_policy_places_on_an_open_worker_and_books_it(policy: str) -> None:
    scheduler = synced_scheduler(policy, ["a", "b", "c", "d"])
    scheduler.observe(WorkerSuspended("b", True), now=0.0)
    rng = random.Random(1)
    for index in range(60):
        keys = PATH[: 8 * rng.randrange(40)] + pages(rng, rng.randrange(6))
        placement = scheduler.place(route(f"r{index}", keys, excluded=["c"]), now=index * 0.01)
        assert placement.worker_id in ("a", "d")
        assert placement.reason
        scheduler.check()
        if index % 3:
            scheduler.observe(RequestFinished(f"r{index}", 1, 9), now=index * 0.01)
    assert sum(v.live_requests for v in scheduler.workers()) == 20
    assert sum(v.placed_total for v in scheduler.workers()) == 60


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_explain_foresees_place_and_changes_nothing(policy: str) -> None:
    scheduler = synced_scheduler(policy, ["a", "b", "c"])
    rng = random.Random(2)
    for index in range(30):
        request = route(f"r{index}", PATH[: 8 * rng.randrange(40)] + pages(rng, 3))
        before = (scheduler.workers(), scheduler.tree_summary())
        foreseen = [scheduler.explain(request, now=float(index)) for _ in range(2)]
        assert (scheduler.workers(), scheduler.tree_summary()) == before
        placement = scheduler.place(request, now=float(index))
        assert foreseen[0].placement == foreseen[1].placement == placement
        assert [c.worker_id for c in foreseen[0].candidates] == ["a", "b", "c"]
        chosen = next(c for c in foreseen[0].candidates if c.worker_id == placement.worker_id)
        assert chosen.cached_tokens == placement.cached_tokens


def test_an_unknown_policy_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"'e3'.*round_robin.*preble"):
        make_policy("e3")


def test_the_last_prompt_token_is_always_computed() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a"])
    scheduler.observe(stored("a", 1, PATH), now=0.0)
    assert scheduler.place(route("r1", PATH, extra_tokens=0), now=0.0).cached_tokens == 39 * 16
    assert scheduler.place(route("r2", PATH, extra_tokens=1), now=0.0).cached_tokens == 40 * 16
    assert scheduler.place(route("r3", b"", extra_tokens=0), now=0.0).cached_tokens == 0
    scheduler.check()


def test_placements_depend_on_the_seed_alone() -> None:
    def run(seed: int) -> list[str]:
        scheduler = synced_scheduler("power_of_two", ["a", "b", "c", "d"], seed=seed)
        return [scheduler.place(route(f"r{i}"), now=0.0).worker_id for i in range(40)]

    assert run(1) == run(1)
    assert run(1) != run(2)


# Expected marks


def test_a_burst_of_a_new_prefix_follows_its_first_request_at_once() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a", "b", "c", "d"])
    first = scheduler.place(route("r0", PATH), now=1.0)
    assert first.cached_tokens == 0
    for index in range(1, 10):
        placement = scheduler.place(route(f"r{index}", PATH + pages(RNG, 2)), now=1.0)
        assert placement.worker_id == first.worker_id
        assert placement.cached_tokens == 40 * 16


@pytest.mark.parametrize("end", ["first token", "failed", "finished", "expiry", "lost"])
def test_an_expected_mark_ends(end: str) -> None:
    scheduler = synced_scheduler("longest_prefix", ["a"], expected_seconds=10.0)
    scheduler.place(route("r0", PATH), now=1.0)
    assert scheduler.explain(route("x", PATH), now=1.0).placement.cached_tokens == 40 * 16
    if end == "first token":
        scheduler.observe(report("a", Progress("r0", 1, 1, 0)), now=2.0)
    elif end == "failed":
        scheduler.observe(RequestFailed("r0", 1), now=2.0)
    elif end == "finished":
        scheduler.observe(RequestFinished("r0", 1, 3), now=2.0)
    elif end == "expiry":
        assert scheduler.next_wakeup() == 11.0
        scheduler.tick(now=10.9)
        assert scheduler.explain(route("x", PATH), now=10.9).placement.cached_tokens == 40 * 16
        scheduler.tick(now=11.0)
    else:
        scheduler.observe(WorkerJoined(worker_spec("b")), now=2.0)
        scheduler.observe(WorkerLost("a"), now=2.0)
    assert scheduler.explain(route("x", PATH), now=11.0).placement.cached_tokens == 0
    scheduler.check()


@pytest.mark.parametrize("policy", ["longest_prefix", "e2", "preble"])
def test_a_document_in_a_long_queue_is_not_computed_elsewhere_as_well(policy: str) -> None:
    scheduler = synced_scheduler(policy, ["a", "b"])
    for index in range(60):  # a busy time
        scheduler.place(route(f"busy{index}", pages(RNG, 400)), now=0.5)
    first = scheduler.place(route("r0", PATH * 10), now=1.0)
    for now in (9.0, 30.0, 90.0):
        scheduler.tick(now=now)
        request = route(f"at {now}", PATH * 10 + pages(RNG, 2))
        assert scheduler.place(request, now=now).worker_id == first.worker_id
    scheduler.check()


def test_a_queued_request_that_outlives_its_mark_stays_on_the_books() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a"], expected_seconds=10.0)
    scheduler.place(route("r0", PATH), now=1.0)
    scheduler.tick(now=100.0)
    scheduler.check()
    assert view(scheduler, "a").live_requests == 1
    scheduler.observe(report("a", Progress("r0", 1, 1, 0)), now=101.0)
    scheduler.observe(RequestFinished("r0", 1, 1), now=101.0)
    scheduler.check()
    assert view(scheduler, "a").live_requests == 0


# Books


def test_load_moves_from_prefill_to_decode_and_off() -> None:
    scheduler = synced_scheduler("least_loaded", ["a"])
    scheduler.place(route("r0", PATH, max_tokens=50), now=0.0)
    assert view(scheduler, "a").queued_prefill_tokens == 645
    assert view(scheduler, "a").decode_tokens == 0
    scheduler.observe(report("a", Progress("r0", 1, 1, 0)), now=0.1)
    assert view(scheduler, "a").queued_prefill_tokens == 0
    assert view(scheduler, "a").decode_tokens == 49
    scheduler.observe(report("a", Progress("r0", 1, 4)), now=0.2)
    assert view(scheduler, "a").decode_tokens == 45
    scheduler.observe(report("a", Progress("r0", 1, 60)), now=0.2)
    assert view(scheduler, "a").decode_tokens == 1, "a live request is never free"
    scheduler.check()
    scheduler.observe(RequestFinished("r0", 1, 65), now=0.3)
    scheduler.check()
    assert view(scheduler, "a").decode_tokens == 0 and view(scheduler, "a").live_requests == 0


def test_events_of_unknown_old_or_ended_attempts_are_no_ops() -> None:
    scheduler = synced_scheduler("round_robin", ["a", "b"])
    scheduler.place(route("r0", PATH), now=0.0)
    scheduler.place(route("r0", PATH, attempt=2, excluded=["a"]), now=0.0)
    scheduler.check()
    assert [v.live_requests for v in scheduler.workers()] == [0, 1]
    for event in (
        RequestFailed("r0", 1),
        RequestFinished("r0", 1, 5),
        RequestFinished("r0", 3, 5),
        RequestFinished("nobody", 1, 5),
        report("a", Progress("r0", 1, 1, 0), Progress("nobody", 1, 1, 0)),
        report("a", Progress("r0", 2, 1, 0)),
        report("nobody", Progress("r0", 2, 1, 0)),
        WorkerLost("nobody"),
        WorkerDrained("nobody"),
        WorkerSuspended("nobody", True),
        stored("nobody", 1, PATH),
        SnapshotReceived("nobody", CacheSnapshot(1, 0, (PATH,))),
    ):
        before = scheduler.workers()[1]
        scheduler.observe(event, now=0.1)
        scheduler.check()
        assert scheduler.workers()[1] == before
    for _ in range(2):
        scheduler.observe(RequestFinished("r0", 2, 5), now=0.2)
        scheduler.check()
        assert [v.live_requests for v in scheduler.workers()] == [0, 0]


def test_a_lost_worker_takes_its_load_with_it_once() -> None:
    scheduler = synced_scheduler("round_robin", ["a", "b"])
    for index in range(6):
        scheduler.place(route(f"r{index}", PATH), now=0.0)
    scheduler.observe(WorkerLost("a"), now=0.1)
    scheduler.check()
    assert [(v.worker_id, v.live_requests) for v in scheduler.workers()] == [("b", 3)]
    scheduler.observe(RequestFailed("r0", 1), now=0.2)
    scheduler.observe(RequestFinished("r2", 1, 3), now=0.2)
    again = scheduler.place(route("r0", PATH, attempt=2), now=0.2)
    assert again.worker_id == "b"
    scheduler.check()
    assert view(scheduler, "b").live_requests == 4


def test_predicted_output_is_the_running_mean_within_the_limit() -> None:
    scheduler = synced_scheduler("round_robin", ["a"])
    first = scheduler.place(route("r0", max_tokens=300), now=0.0)
    assert first.predicted_output_tokens == 300
    scheduler.observe(RequestFinished("r0", 1, 20), now=0.1)
    scheduler.place(route("r1"), now=0.1)
    scheduler.observe(RequestFinished("r1", 1, 40), now=0.1)
    assert scheduler.place(route("r2", max_tokens=300), now=0.2).predicted_output_tokens == 30
    assert scheduler.place(route("r3", max_tokens=8), now=0.2).predicted_output_tokens == 8
    scheduler.observe(RequestFinished("r3", 1, 0), now=0.3)
    assert scheduler.place(route("r4", max_tokens=300), now=0.4).predicted_output_tokens == 30


def test_belief_and_truth_of_cached_tokens_are_counted_per_worker() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a"])
    scheduler.observe(stored("a", 1, PATH), now=0.0)
    scheduler.place(route("r0", PATH), now=0.0)
    scheduler.observe(report("a", Progress("r0", 1, 1, 600)), now=0.1)
    scheduler.observe(report("a", Progress("r0", 1, 1, 600)), now=0.2)
    assert view(scheduler, "a").predicted_cached_total == 640
    assert view(scheduler, "a").actual_cached_total == 600


# Load seen through reports


def least_loaded_pair() -> GlobalScheduler:
    return synced_scheduler("least_loaded", ["a", "b"])


def outstanding(scheduler: GlobalScheduler) -> dict[str, float]:
    explained = scheduler.explain(route("probe"), now=1e6)
    return {c.worker_id: c.terms["outstanding_tokens"] for c in explained.candidates}


def test_other_routers_load_shows_through_reports() -> None:
    scheduler = least_loaded_pair()
    scheduler.observe(report("a", waiting_prefill_tokens=5000, num_waiting=3), now=1.0)
    assert outstanding(scheduler) == {"a": 5000, "b": 0}
    scheduler.observe(report("a"), now=2.0)
    assert outstanding(scheduler) == {"a": 0, "b": 0}


def test_own_load_is_not_counted_twice_when_the_report_shows_it() -> None:
    scheduler = synced_scheduler("least_loaded", ["a"])
    scheduler.place(route("r0", PATH), now=1.0)
    assert outstanding(scheduler)["a"] == 645
    # A report that left before the request came, one that shows it, one half way through.
    scheduler.observe(report("a"), now=1.001)
    assert outstanding(scheduler)["a"] == 645
    scheduler.observe(report("a", waiting_prefill_tokens=645, num_waiting=1), now=1.002)
    assert outstanding(scheduler)["a"] == 645
    scheduler.observe(report("a", waiting_prefill_tokens=200, num_running=1), now=1.5)
    assert outstanding(scheduler)["a"] == 200


def test_a_placement_counts_at_once_on_top_of_what_others_have_there() -> None:
    scheduler = synced_scheduler("least_loaded", ["a"])
    scheduler.observe(report("a", waiting_prefill_tokens=5000, num_waiting=3), now=1.0)
    scheduler.place(route("r0", PATH), now=2.0)
    assert outstanding(scheduler)["a"] == 5645
    scheduler.observe(report("a", waiting_prefill_tokens=5100, num_waiting=4), now=3.0)
    assert outstanding(scheduler)["a"] == 5100
    scheduler.check()


def test_a_slow_worker_is_seen_to_be_slow() -> None:
    scheduler = synced_scheduler("preble", ["a", "b"])
    for index in range(60):
        for worker_id, seconds in (("a", 0.03), ("b", 0.01)):
            step = StepReport(
                worker_id=worker_id,
                load=LoadReport(free_pages=1000),
                step_seconds=seconds,
                predicted_step_seconds=0.01,
            )
            scheduler.observe(step, now=index * 0.1)
    assert view(scheduler, "a").speed_ratio == pytest.approx(3.0, rel=0.1)
    assert view(scheduler, "b").speed_ratio == pytest.approx(1.0, rel=0.25)
    chosen = [scheduler.place(route(f"r{i}", pages(RNG, 30)), now=9.0).worker_id for i in range(8)]
    assert chosen.count("b") > chosen.count("a")


def test_a_recovered_worker_is_seen_to_have_recovered() -> None:
    scheduler = synced_scheduler("preble", ["a"])
    for index in range(200):
        step = StepReport(
            worker_id="a",
            load=LoadReport(),
            step_seconds=0.05 if index < 20 else 0.01,
            predicted_step_seconds=0.01,
        )
        scheduler.observe(step, now=index * 0.1)
    assert view(scheduler, "a").speed_ratio == pytest.approx(1.0, abs=0.02)
