"""The plain policies do what their one line says."""

import random
from collections import Counter

from routing_helpers import pages, route, synced_scheduler

from preble.events import CacheEvents, Stored
from preble_router.stimuli import CacheChanged, RequestFinished, WorkerSuspended

RNG = random.Random(5)

PATH = pages(RNG, 40)


def test_round_robin_takes_turns_and_skips_who_is_not_open() -> None:
    scheduler = synced_scheduler("round_robin", ["a", "b", "c"])
    order = [scheduler.place(route(f"r{i}"), now=0.0).worker_id for i in range(6)]
    assert order == ["a", "b", "c", "a", "b", "c"]
    scheduler.observe(WorkerSuspended("b", True), now=0.0)
    order = [scheduler.place(route(f"s{i}"), now=0.0).worker_id for i in range(4)]
    assert order == ["a", "c", "a", "c"]


def test_round_robin_does_not_move_on_for_a_dry_run() -> None:
    scheduler = synced_scheduler("round_robin", ["a", "b"])
    for index in range(4):
        scheduler.explain(route("probe"), now=0.0)
        assert scheduler.place(route(f"r{index}"), now=0.0).worker_id == "ab"[index % 2]


def test_random_reaches_everybody_about_equally() -> None:
    scheduler = synced_scheduler("random", ["a", "b", "c", "d"])
    counts = Counter(scheduler.place(route(f"r{i}"), now=0.0).worker_id for i in range(400))
    assert set(counts) == {"a", "b", "c", "d"}
    assert all(70 <= count <= 130 for count in counts.values())


def test_least_loaded_counts_tokens_not_requests() -> None:
    scheduler = synced_scheduler("least_loaded", ["a", "b"])
    first = scheduler.place(route("long", PATH), now=0.0).worker_id
    others = {scheduler.place(route(f"r{i}", PATH[:16]), now=0.0).worker_id for i in range(10)}
    assert len(others) == 1 and first not in others
    scheduler.observe(RequestFinished("long", 1, 5), now=1.0)
    assert scheduler.place(route("next"), now=1.0).worker_id == first


def test_least_loaded_spreads_equals() -> None:
    scheduler = synced_scheduler("least_loaded", ["a", "b", "c", "d"])
    counts = Counter(scheduler.place(route(f"r{i}"), now=0.0).worker_id for i in range(40))
    assert all(count == 10 for count in counts.values())


def test_power_of_two_avoids_the_heaviest() -> None:
    scheduler = synced_scheduler("power_of_two", ["a", "b", "c"])
    heavy = scheduler.place(route("long", PATH), now=0.0).worker_id
    others = [scheduler.place(route(f"r{i}"), now=0.0).worker_id for i in range(30)]
    assert heavy not in others
    assert len(set(others)) == 2


def test_longest_prefix_follows_the_cache_whatever_the_load() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a", "b"])
    for worker_id, end in (("a", 80), ("b", 160)):
        event = CacheChanged(worker_id, CacheEvents(1, 1, (Stored(PATH[:end]),)))
        scheduler.observe(event, now=0.0)
    placed = [scheduler.place(route(f"r{i}", PATH[:240]), now=0.0) for i in range(20)]
    assert {p.worker_id for p in placed} == {"b"}
    assert placed[0].cached_tokens == 160 // 8 * 16


def test_longest_prefix_balances_what_nobody_has() -> None:
    scheduler = synced_scheduler("longest_prefix", ["a", "b", "c", "d"])
    counts = Counter(
        scheduler.place(route(f"r{i}", pages(RNG, 3)), now=0.0).worker_id for i in range(40)
    )
    assert all(count == 10 for count in counts.values())
