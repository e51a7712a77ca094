"""E2 by its rules, and each fault of the published prototype that ours must not have."""

import random
import sys
from collections import Counter

import pytest
from routing_helpers import COST, Arrival, PretendCluster, pages, poisson, route, synced_scheduler

from preble.events import CacheEvents, Evicted, Stored
from preble.page_keys import KEY_BYTES
from preble.types import LoadReport
from preble_router.policies.e2 import E2, RATIO_SECONDS, WINDOW_SECONDS
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    Placement,
    Progress,
    RequestFailed,
    RequestFinished,
    StepReport,
    WorkerLost,
    WorkerSuspended,
)

RNG = random.Random(9)
PATH = pages(RNG, 40)


def stored(scheduler: GlobalScheduler, worker_id: str, seq: int, path: bytes) -> None:
    batch = CacheEvents(1, seq, (Stored(path),))
    scheduler.observe(CacheChanged(worker_id, batch), now=0.0)


def serve(
    scheduler: GlobalScheduler, request_id: str, path: bytes, *, now: float, output: int = 8
) -> Placement:
    """Place a request and end it at once, its first token included."""
    placed = scheduler.place(route(request_id, path), now=now)
    progress = Progress(request_id, 1, 1, placed.cached_tokens)
    load = LoadReport(free_pages=10_000)
    report = StepReport(worker_id=placed.worker_id, load=load, progress=(progress,))
    scheduler.observe(report, now=now)
    scheduler.observe(RequestFinished(request_id, 1, output), now=now)
    return placed


def explained(scheduler: GlobalScheduler, path: bytes, now: float) -> dict[str, dict[str, float]]:
    answer = scheduler.explain(route("probe", path), now=now)
    return {c.worker_id: c.terms for c in answer.candidates}


# The rules


def test_exploits_while_less_than_half_is_missing() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    stored(scheduler, "b", 1, PATH[: 20 * KEY_BYTES])
    for index in range(5):  # load on b that exploiting must not mind
        serve(scheduler, f"w{index}", PATH[: 20 * KEY_BYTES], now=1.0)
    placed = scheduler.place(route("r", PATH[: 39 * KEY_BYTES]), now=2.0)
    assert (placed.worker_id, placed.reason.split(":")[0]) == ("b", "exploit")


def test_explores_where_half_or_more_is_missing() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    stored(scheduler, "b", 1, PATH[: 10 * KEY_BYTES])
    placed = scheduler.place(route("r", PATH), now=2.0)
    assert placed.reason.startswith("explore")
    terms = explained(scheduler, PATH, 2.0)
    assert terms["a"]["prefill"] == COST.prefill_seconds(645.0, 0.0)
    assert terms["b"]["prefill"] <= COST.prefill_seconds(485.0, 0.0)


def test_load_is_what_was_assigned_within_the_window_to_the_moment() -> None:
    scheduler = synced_scheduler("e2", ["a"])
    serve(scheduler, "r0", PATH, now=10.0, output=20)
    serve(scheduler, "r1", pages(RNG, 10), now=20.0, output=40)
    prefill = COST.prefill_seconds(645.0, 0.0) + COST.prefill_seconds(165.0, 0.0)
    decode = 30 * COST.decode_seconds(0.0)
    both = explained(scheduler, PATH, 20.0)["a"]["load"]
    assert both == pytest.approx(prefill + 2 * decode)
    just_before = explained(scheduler, PATH, 10.0 + WINDOW_SECONDS - 1e-6)["a"]["load"]
    assert just_before == both
    after = explained(scheduler, PATH, 10.0 + WINDOW_SECONDS)["a"]["load"]
    assert after == pytest.approx(COST.prefill_seconds(165.0, 0.0) + decode)
    assert explained(scheduler, PATH, 20.0 + WINDOW_SECONDS)["a"]["load"] == 0.0


def test_eviction_costs_by_how_often_the_victims_were_shared() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    hot, cold = pages(RNG, 20), pages(RNG, 20)
    for worker_id, path in (("a", hot), ("b", cold)):
        stored(scheduler, worker_id, 1, path)
        full = LoadReport(free_pages=0, tree_pages=20)
        scheduler.observe(StepReport(worker_id=worker_id, load=full), now=1.0)
    for index in range(3):
        placed = scheduler.place(route(f"h{index}", hot), now=2.0)
        assert placed.worker_id == "a"
        scheduler.observe(RequestFinished(f"h{index}", 1, 2), now=2.0)
    scheduler.place(route("c0", cold), now=2.0)
    scheduler.observe(RequestFinished("c0", 1, 2), now=2.0)
    terms = explained(scheduler, pages(RNG, 15), 3.0)
    # 245 missing tokens evict each worker's one node of 320, used by every request there.
    assert terms["a"]["evict"] == pytest.approx(COST.prefill_seconds(320.0, 0.0))
    assert terms["b"]["evict"] == pytest.approx(COST.prefill_seconds(320.0, 0.0))
    assert explained(scheduler, pages(RNG, 15), 2.0 + WINDOW_SECONDS)["a"]["evict"] == 0.0


def test_a_worker_that_mostly_decodes_is_fed_before_exploring() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    stored(scheduler, "b", 1, PATH)
    for index in range(4):
        serve(scheduler, f"r{index}", PATH, now=1.0)
    placed = scheduler.place(route("new", pages(RNG, 20)), now=2.0)
    assert (placed.worker_id, placed.reason.split(":")[0]) == ("b", "decode-heavy")
    later = scheduler.explain(route("new2", pages(RNG, 20)), now=1.0 + RATIO_SECONDS).placement
    assert later.reason.startswith("explore")


def test_ties_go_to_the_lowest_id() -> None:
    scheduler = synced_scheduler("e2", ["c", "a", "b"])
    assert scheduler.place(route("r"), now=0.0).worker_id == "a"


def test_load_shift_moves_a_cheap_prefix_off_the_heaviest_worker() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    big, small = pages(RNG, 30), pages(RNG, 10)
    stored(scheduler, "a", 1, big)
    stored(scheduler, "a", 2, small)
    for index in range(100):
        path = big if index % 4 else small
        assert serve(scheduler, f"r{index}", path + pages(RNG, 2), now=1.0).worker_id == "a"
    scheduler.tick(now=2.0)
    moved = scheduler.place(route("m", small + pages(RNG, 2)), now=3.0)
    assert (moved.worker_id, moved.reason.split(":")[0]) == ("b", "load shift")
    assert scheduler.place(route("k", big + pages(RNG, 2)), now=3.0).worker_id == "a"
    scheduler.observe(WorkerLost("b"), now=4.0)
    assert scheduler.place(route("n", small), now=4.0).worker_id == "a"


def test_a_prefix_that_queues_ever_longer_gets_a_second_holder() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    hot = pages(RNG, 30)
    stored(scheduler, "a", 1, hot)
    for index in range(110):
        at = 1.0 + index
        scheduler.place(route(f"r{index}", hot), now=at)
        waited = 0.1 if index < 20 else 0.5
        progress = Progress(f"r{index}", 1, 1, 464)
        report = StepReport(worker_id="a", load=LoadReport(), progress=(progress,))
        scheduler.observe(report, now=at + waited)
        scheduler.observe(RequestFinished(f"r{index}", 1, 8), now=at + waited)
    scheduler.tick(now=112.0)
    copied = scheduler.place(route("c", hot), now=113.0)
    assert copied.worker_id == "b"
    assert {scheduler.place(route(f"d{i}", hot), now=113.0).worker_id for i in range(9)} == {"b"}


# Faults of the prototype


def test_fault_an_exact_repeat_scatters() -> None:
    scheduler = synced_scheduler("e2", ["a", "b", "c", "d"])
    first = serve(scheduler, "r0", PATH, now=0.0)
    stored(scheduler, first.worker_id, 1, PATH)
    placed = [serve(scheduler, f"r{i}", PATH, now=1.0) for i in range(1, 20)]
    assert {p.worker_id for p in placed} == {first.worker_id}
    assert all(p.reason.startswith("exploit") for p in placed)


def test_fault_the_choice_among_holders_2_and_3_returns_0() -> None:
    scheduler = synced_scheduler("e2", ["w0", "w1", "w2", "w3"])
    for worker_id in ("w2", "w3"):
        stored(scheduler, worker_id, 1, PATH)
    counts = Counter(serve(scheduler, f"r{i}", PATH, now=1.0).worker_id for i in range(20))
    assert set(counts) == {"w2", "w3"}
    assert counts["w2"] == counts["w3"] == 10


def test_fault_an_evicted_prefix_is_still_exploited() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    stored(scheduler, "b", 1, PATH)
    assert scheduler.place(route("r0", PATH), now=1.0).worker_id == "b"
    scheduler.observe(RequestFinished("r0", 1, 8), now=1.5)
    evicted = CacheEvents(1, 2, (Evicted(PATH, 0),))
    scheduler.observe(CacheChanged("b", evicted), now=2.0)
    placed = scheduler.explain(route("r1", PATH), now=RATIO_SECONDS + 2.0).placement
    assert (placed.worker_id, placed.cached_tokens) == ("a", 0)
    assert placed.reason.startswith("explore")


def test_fault_a_prefix_idle_longer_than_the_window_but_cached_is_lost() -> None:
    scheduler = synced_scheduler("e2", ["a", "b", "c"])
    stored(scheduler, "c", 1, PATH)
    serve(scheduler, "r0", PATH, now=1.0)
    for now in (WINDOW_SECONDS + 2.0, 10 * WINDOW_SECONDS):
        scheduler.tick(now=now)
        placed = serve(scheduler, f"at {now}", PATH, now=now)
        assert (placed.worker_id, placed.cached_tokens) == ("c", 39 * 16 + 16)


def test_fault_one_failed_request_stops_routing() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    for index in range(200):
        scheduler.place(route(f"r{index}", PATH + pages(RNG, 1)), now=float(index))
        scheduler.observe(RequestFailed(f"r{index}", 1), now=float(index))
        scheduler.tick(now=float(index))
        scheduler.check()
    assert all(view.live_requests == 0 for view in scheduler.workers())


def test_fault_a_request_older_than_the_window_breaks_the_books() -> None:
    scheduler = synced_scheduler("e2", ["a"])
    scheduler.place(route("old", PATH), now=0.0)
    scheduler.tick(now=5 * WINDOW_SECONDS)
    assert explained(scheduler, PATH, 5 * WINDOW_SECONDS)["a"]["load"] == 0.0
    report = StepReport(worker_id="a", load=LoadReport(), progress=(Progress("old", 1, 1, 0),))
    scheduler.observe(report, now=5 * WINDOW_SECONDS)
    scheduler.observe(RequestFinished("old", 1, 5), now=5 * WINDOW_SECONDS)
    scheduler.check()
    serve(scheduler, "new", PATH, now=5 * WINDOW_SECONDS)
    assert explained(scheduler, PATH, 5 * WINDOW_SECONDS)["a"]["load"] > 0.0


def test_fault_the_tree_never_shrinks() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    sizes = []
    for index in range(2000):
        now = index * 1.0
        serve(scheduler, f"r{index}", pages(RNG, 10), now=now)
        scheduler.tick(now=now)
        sizes.append(scheduler.tree_summary().num_pages)
    assert max(sizes) <= (WINDOW_SECONDS + 2) * 10
    scheduler.check()


def test_fault_routing_cost_grows_with_the_tree() -> None:
    def calls_per_place(num_paths: int) -> int:
        scheduler = synced_scheduler("e2", ["a", "b"])
        rng = random.Random(1)
        for seq in range(1, num_paths + 1):
            stored(scheduler, "ab"[seq % 2], (seq + 1) // 2, PATH + pages(rng, 5))
        calls = 0

        def count(frame: object, event: str, arg: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            scheduler.place(route("r", PATH + pages(rng, 5)), now=1.0)
        finally:
            sys.setprofile(None)
        return calls

    assert abs(calls_per_place(4000) - calls_per_place(40)) <= 10


def test_unplaceable_holders_are_not_exploited() -> None:
    scheduler = synced_scheduler("e2", ["a", "b"])
    stored(scheduler, "b", 1, PATH)
    scheduler.observe(WorkerSuspended("b", True), now=0.0)
    assert scheduler.place(route("r", PATH), now=1.0).worker_id == "a"


def test_families_meet_in_a_running_cluster() -> None:
    rng = random.Random(4)
    shared = [pages(rng, 60) for _ in range(6)]
    cluster = PretendCluster(E2(), 3)
    arrivals = []
    for at in poisson(rng, 10.0, 300):
        family = rng.randrange(6)
        arrivals.append(Arrival(at, shared[family] + pages(rng, 6), 20, family))
    jobs = cluster.run(arrivals)
    cluster.scheduler.check()
    assert len(jobs) == 300 and all(job.finished_at for job in jobs)
    assert cluster.meeting_share(jobs) > 0.8
