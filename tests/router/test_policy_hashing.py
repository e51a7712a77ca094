"""`sticky` and `bounded_hash`: where a hash says, and where the ring says that is not too full."""

import random
from collections import Counter

from peer_helpers import chosen, hot_prefix, put, spread
from routing_helpers import PretendCluster, pages, route, synced_scheduler

from preble.page_keys import KEY_BYTES
from preble_router.stimuli import WorkerLost, WorkerSuspended

RNG = random.Random(31)
WORKERS = "abcd"


def test_sticky_hashes_the_first_1024_tokens_and_no_more() -> None:
    scheduler = synced_scheduler("sticky", WORKERS)
    head = pages(RNG, 64)
    assert len({chosen(scheduler, head + pages(RNG, 9)).worker_id for _ in range(20)}) == 1
    homes = Counter(
        chosen(scheduler, head[:-KEY_BYTES] + pages(RNG, 1)).worker_id for _ in range(40)
    )
    assert len(homes) == 4


def test_sticky_sees_no_load_and_one_hot_prefix_goes_to_one_worker() -> None:
    assert max(hot_prefix(PretendCluster("sticky", 4)).values()) == 1.0


def test_sticky_moves_most_prefixes_when_a_worker_goes() -> None:
    scheduler = synced_scheduler("sticky", WORKERS)
    heads = [pages(RNG, 64) for _ in range(200)]
    before = [chosen(scheduler, head).worker_id for head in heads]
    scheduler.observe(WorkerLost("d"), now=0.0)
    after = [chosen(scheduler, head).worker_id for head in heads]
    kept = [b == a for b, a in zip(before, after, strict=True) if b != "d"]
    assert sum(kept) < 0.5 * len(kept)


def test_a_prompt_too_short_to_hash_goes_anywhere() -> None:
    for policy in ("sticky", "bounded_hash"):
        assert set(spread(synced_scheduler(policy, WORKERS), b"", 60)) == set(WORKERS)


def test_bounded_hash_hashes_the_first_256_tokens() -> None:
    scheduler = synced_scheduler("bounded_hash", WORKERS)
    head = pages(RNG, 16)
    assert len({chosen(scheduler, head + pages(RNG, 5)).worker_id for _ in range(20)}) == 1
    homes = Counter(chosen(scheduler, pages(RNG, 16)).worker_id for _ in range(400))
    assert all(60 <= homes[worker_id] <= 140 for worker_id in WORKERS)


def test_bounded_hash_passes_over_who_has_more_than_125_percent_of_the_mean() -> None:
    scheduler = synced_scheduler("bounded_hash", WORKERS)
    head = pages(RNG, 16)
    home = chosen(scheduler, head).worker_id
    for worker_id in WORKERS:
        put(scheduler, worker_id, pages(RNG, 1), count=9 if worker_id == home else 8)
    assert chosen(scheduler, head).worker_id == home  # 9 <= 1.25 * 8.25
    put(scheduler, home, pages(RNG, 1), count=2)
    assert chosen(scheduler, head).worker_id != home  # 11 > 1.25 * 8.75


def test_bounded_hash_loses_affinity_when_few_are_in_flight() -> None:
    scheduler = synced_scheduler("bounded_hash", WORKERS)
    head = pages(RNG, 16)
    places = [scheduler.place(route(f"r{i}", head), now=0.0).worker_id for i in range(4)]
    assert set(places) == set(WORKERS)  # one in flight is already more than 1.25 times the mean


def test_bounded_hash_keeps_the_other_prefixes_when_a_worker_goes_and_returns() -> None:
    scheduler = synced_scheduler("bounded_hash", WORKERS)
    heads = [pages(RNG, 16) for _ in range(200)]
    before = [chosen(scheduler, head).worker_id for head in heads]
    scheduler.observe(WorkerSuspended("c", True), now=0.0)
    away = [chosen(scheduler, head).worker_id for head in heads]
    assert all(a == b for a, b in zip(away, before, strict=True) if b != "c")
    assert len({a for a, b in zip(away, before, strict=True) if b == "c"}) == 3
    scheduler.observe(WorkerLost("c"), now=0.0)
    assert [chosen(scheduler, head).worker_id for head in heads] == away
