"""Who may be placed on, what loss does, and when the scheduler wakes, whatever the policy."""

import random
from collections import Counter

import pytest
from routing_helpers import COST, pages, route, synced_scheduler, worker_spec
from scheduler_helpers import report_holding, stored, view

from preble.errors import NoWorkers, PeerError
from preble.events import CacheEvents, CacheSnapshot, Evicted, SnapshotRequest
from preble.types import WorkerSpec
from preble_router.event_feed import DOUBT_SECONDS
from preble_router.policies import POLICY_NAMES, make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    RequestFinished,
    RequestSnapshot,
    SnapshotReceived,
    WorkerDrained,
    WorkerJoined,
    WorkerLost,
    WorkerSuspended,
)

RNG = random.Random(7)
PATH = pages(RNG, 40)


# Membership


def test_no_workers_says_why() -> None:
    scheduler = GlobalScheduler(make_policy("preble"), rng=random.Random(0))
    with pytest.raises(NoWorkers, match="no worker is linked"):
        scheduler.place(route("r0"), now=0.0)
    for worker_id in ("a", "b", "c"):
        scheduler.observe(WorkerJoined(worker_spec(worker_id)), now=0.0)
    scheduler.observe(WorkerSuspended("a", True), now=0.0)
    scheduler.observe(WorkerDrained("b"), now=0.0)
    with pytest.raises(NoWorkers, match="1 silent, 1 draining, 1 excluded"):
        scheduler.place(route("r0", excluded=["c"]), now=0.0)
    scheduler.check()
    assert scheduler.place(route("r0"), now=0.0).worker_id == "c"


def test_a_joining_worker_is_used_only_where_no_known_one_is() -> None:
    scheduler = synced_scheduler("round_robin", ["a"])
    scheduler.observe(WorkerJoined(worker_spec("b")), now=0.0)
    placed = {scheduler.place(route(f"r{i}"), now=0.0).worker_id for i in range(4)}
    assert placed == {"a"}
    assert scheduler.place(route("x", excluded=["a"]), now=0.0).worker_id == "b"
    scheduler.observe(WorkerSuspended("a", True), now=0.0)
    assert scheduler.place(route("y"), now=0.0).worker_id == "b"
    scheduler.observe(WorkerSuspended("a", False), now=0.0)
    scheduler.observe(SnapshotReceived("b", CacheSnapshot(1, 0, ())), now=0.0)
    assert {scheduler.place(route(f"z{i}"), now=0.0).worker_id for i in range(4)} == {"a", "b"}


def test_a_suspended_worker_keeps_its_requests_and_comes_back() -> None:
    scheduler = synced_scheduler("round_robin", ["a", "b"])
    scheduler.place(route("r0", excluded=["b"]), now=0.0)
    scheduler.observe(WorkerSuspended("a", True), now=0.0)
    assert {scheduler.place(route(f"x{i}"), now=0.0).worker_id for i in range(4)} == {"b"}
    assert view(scheduler, "a").live_requests == 1 and view(scheduler, "a").suspended
    scheduler.observe(WorkerSuspended("a", False), now=0.0)
    assert {scheduler.place(route(f"y{i}"), now=0.0).worker_id for i in range(4)} == {"a", "b"}


def test_a_worker_that_rejoins_starts_anew() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a", "b"])
    scheduler.observe(stored("a", 1, PATH), now=0.0)
    scheduler.place(route("r0", PATH), now=0.0)
    scheduler.observe(WorkerDrained("a"), now=0.0)
    scheduler.observe(WorkerJoined(worker_spec("a", epoch=2)), now=1.0)
    scheduler.check()
    again = view(scheduler, "a")
    assert (again.live_requests, again.held_pages, again.draining, again.synced) == (
        0,
        0,
        False,
        False,
    )
    scheduler.observe(SnapshotReceived("a", CacheSnapshot(2, 0, ())), now=1.0)
    assert scheduler.explain(route("x", PATH), now=1.0).placement.cached_tokens == 0


def test_the_slot_of_a_lost_worker_is_taken_by_the_next() -> None:
    scheduler = synced_scheduler("preble", ["a", "b"])
    scheduler.observe(stored("a", 1, PATH), now=0.0)
    for index in range(50):
        scheduler.observe(WorkerLost("a" if index == 0 else f"n{index - 1}"), now=float(index))
        scheduler.observe(WorkerJoined(worker_spec(f"n{index}")), now=float(index))
        scheduler.observe(SnapshotReceived(f"n{index}", CacheSnapshot(1, 0, ())), now=float(index))
        scheduler.check()
        placement = scheduler.place(route(f"r{index}", PATH, excluded=["b"]), now=float(index))
        assert (placement.worker_id, placement.cached_tokens) == (f"n{index}", 0)
    assert len(scheduler.workers()) == 2


def test_requests_too_long_for_one_worker_go_to_a_larger_one() -> None:
    scheduler = synced_scheduler("round_robin", ["a", "b"])
    small = WorkerSpec(
        worker_id="c",
        epoch=1,
        model="pretend",
        page_tokens=16,
        capacity_tokens=2048,
        max_batch_tokens=512,
        max_sequences=8,
        context_tokens=600,
        vocab_size=1000,
        cost=COST,
    )
    scheduler.observe(WorkerJoined(small), now=0.0)
    scheduler.observe(SnapshotReceived("c", CacheSnapshot(1, 0, ())), now=0.0)
    assert {scheduler.place(route(f"s{i}"), now=0.0).worker_id for i in range(6)} == {"a", "b", "c"}
    assert {scheduler.place(route(f"l{i}", PATH), now=0.0).worker_id for i in range(6)} == {
        "a",
        "b",
    }
    with_only_small = route("x", PATH, excluded=["a", "b"])
    assert scheduler.place(with_only_small, now=0.0).worker_id == "c"


def test_a_worker_with_other_pages_is_the_peers_fault() -> None:
    scheduler = GlobalScheduler(make_policy("preble"), rng=random.Random(0), page_tokens=32)
    with pytest.raises(PeerError, match="pages of 16 tokens, this router of 32"):
        scheduler.observe(WorkerJoined(worker_spec("a")), now=0.0)


# Loss


def test_a_gap_leads_to_one_snapshot_request_and_back_in_sync() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a"])
    scheduler.observe(stored("a", 1, PATH[:80]), now=0.0)
    scheduler.observe(stored("a", 3, PATH), now=1.0)
    wakeup = scheduler.next_wakeup()
    assert wakeup is not None and wakeup <= 1.0 + DOUBT_SECONDS[1]
    (ask,) = scheduler.tick(now=wakeup)
    assert ask.worker_id == "a" and ask.request.number == 1 and ask.request.bucket_digests
    assert scheduler.tick(now=wakeup) == []
    assert not view(scheduler, "a").synced
    # The view from before the gap is still mostly right, and used.
    assert scheduler.place(route("r0", PATH), now=1.0).worker_id == "a"
    scheduler.observe(SnapshotReceived("a", CacheSnapshot(1, 3, (PATH[:160],), number=1)), now=1.4)
    scheduler.check()
    assert view(scheduler, "a").synced and view(scheduler, "a").held_pages == 20


def test_a_lost_last_event_shows_in_the_digest() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a"])
    scheduler.observe(stored("a", 1, PATH), now=0.0)
    scheduler.observe(report_holding("a", PATH), now=0.1)
    assert scheduler.tick(now=0.1) == []
    scheduler.observe(report_holding("a", PATH[:80]), now=0.2)
    (ask,) = scheduler.tick(now=0.2 + DOUBT_SECONDS[1])
    snapshot = CacheSnapshot(1, 2, (PATH[:80],), number=ask.request.number)
    scheduler.observe(SnapshotReceived("a", snapshot), now=0.6)
    scheduler.observe(report_holding("a", PATH[:80]), now=0.7)
    assert scheduler.tick(now=2.0) == [] and view(scheduler, "a").held_pages == 10
    scheduler.check()


def test_a_snapshot_replaces_and_events_before_it_are_ignored() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a"])
    scheduler.observe(stored("a", 1, PATH), now=0.0)
    scheduler.observe(SnapshotReceived("a", CacheSnapshot(1, 5, (PATH[:80],))), now=0.1)
    scheduler.observe(stored("a", 4, PATH), now=0.2)
    assert view(scheduler, "a").held_pages == 10
    evicted = CacheEvents(1, 6, (Evicted(PATH[:80], 4),))
    scheduler.observe(CacheChanged("a", evicted), now=0.3)
    assert view(scheduler, "a").held_pages == 4 and view(scheduler, "a").snapshots_total == 2
    scheduler.check()


def test_another_epoch_forgets_the_worker_until_its_snapshot() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a", "b"])
    scheduler.observe(stored("a", 1, PATH), now=0.0)
    scheduler.observe(CacheChanged("a", CacheEvents(2, 1, ())), now=1.0)
    assert view(scheduler, "a").held_pages == 0
    asked_at = 1.0 + DOUBT_SECONDS[1]
    assert scheduler.tick(now=asked_at) == [RequestSnapshot("a", SnapshotRequest(1))]
    assert scheduler.place(route("r0", PATH), now=asked_at).worker_id == "b"
    scheduler.observe(SnapshotReceived("a", CacheSnapshot(2, 1, (PATH,), number=1)), now=1.4)
    assert scheduler.place(route("r1", PATH), now=1.4).cached_tokens == 640
    scheduler.check()


# Bounded memory and wake-ups


def test_the_tree_shrinks_to_what_is_held_once_the_window_has_passed() -> None:
    scheduler = synced_scheduler("preble", ["a", "b"], window_seconds=60.0)
    scheduler.observe(stored("a", 1, PATH), now=0.0)
    for index in range(300):
        request = route(f"r{index}", PATH[:160] + pages(RNG, 5))
        scheduler.place(request, now=index * 0.1)
        scheduler.observe(RequestFinished(f"r{index}", 1, 5), now=index * 0.1)
    assert scheduler.tree_summary().num_pages == 40 + 1500
    now = 30.0
    while (wakeup := scheduler.next_wakeup()) is not None and wakeup < 1000.0:
        now = max(now, wakeup)
        scheduler.tick(now=now)
    scheduler.check()
    assert scheduler.tree_summary().num_pages == 40
    assert now < 30.0 + 62.0 + 10.0


def test_every_wakeup_makes_progress() -> None:
    for policy in POLICY_NAMES:
        scheduler = synced_scheduler(policy, ["a", "b"])
        scheduler.observe(WorkerJoined(worker_spec("c")), now=0.0)
        for index in range(200):
            scheduler.place(route(f"r{index}", pages(RNG, 3)), now=index * 0.01)
        ticks: Counter[int] = Counter()
        while (wakeup := scheduler.next_wakeup()) is not None and wakeup < 400.0:
            scheduler.tick(now=wakeup)
            ticks[int(wakeup)] += 1
            # A hundred expectations that expire, twenty polls and a few duties in a second; more
            # would be wake-ups that do nothing.
            assert ticks[int(wakeup)] < 200, policy
        scheduler.check()


def test_an_idle_scheduler_sleeps() -> None:
    scheduler = synced_scheduler("preble", ["a"])
    scheduler.tick(now=0.0)
    wakeup = scheduler.next_wakeup()
    assert wakeup is None or wakeup > 0.0
