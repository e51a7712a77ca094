"""`cache_route`: the plan of homes on its own, and the policy that follows it."""

import random

from peer_helpers import chosen, hot_prefix, spread
from routing_helpers import PretendCluster, pages, route, synced_scheduler

from preble_router.policies.home_plan import HotKey, plan_homes
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import RequestFinished, WorkerLost

RNG = random.Random(61)
WIDE = dict.fromkeys(range(4), 100_000)


def keys(*requests: int, tokens: int = 1000) -> list[HotKey]:
    return [HotKey(digest, tokens, count) for digest, count in enumerate(requests)]


def test_a_key_gets_as_many_homes_as_its_rate_fills_workers() -> None:
    homes = plan_homes(keys(60, 20, 10, 10), WIDE)  # 25 per worker
    assert [len(homes[digest]) for digest in range(4)] == [3, 1, 1, 1]
    assert all(len(set(at)) == len(at) for at in homes.values())


def test_the_heaviest_goes_first_onto_the_least_loaded() -> None:
    homes = plan_homes(keys(9, 8, 7, 6, 5, 4), dict.fromkeys(range(2), 100_000))
    loads = [sum((9, 8, 7, 6, 5, 4)[d] for d, at in homes.items() if at == [s]) for s in (0, 1)]
    assert sorted(loads) == [19, 20]


def test_no_more_copies_than_warm_slots_the_hottest_first() -> None:
    two_slots = dict.fromkeys(range(2), 1500)  # 0.8 of it holds one key of 1000 tokens
    homes = plan_homes(keys(10, 30, 20, 5), two_slots)
    assert set(homes) == {1, 2}
    assert sorted(homes[1] + homes[2]) == [0, 1]


def test_without_keys_or_workers_there_are_no_homes() -> None:
    assert plan_homes([], WIDE) == {}
    assert plan_homes(keys(5), {}) == {}


def test_what_comes_once_has_no_home() -> None:
    scheduler = synced_scheduler("cache_route", "abcd")
    unique = [pages(RNG, 60) for _ in range(20)]
    for index, path in enumerate(unique):
        scheduler.place(route(f"u{index}", path), now=0.0)
    scheduler.tick(now=10.0)
    assert all("of two" in chosen(scheduler, path, now=10.0).reason for path in unique)


def test_the_longest_prefix_that_comes_again_is_the_key() -> None:
    scheduler = synced_scheduler("cache_route", "abcd")
    system = pages(RNG, 32)
    documents = [system + pages(RNG, 40) for _ in range(4)]
    for index, document in enumerate(documents):
        serve(scheduler, document, 10, now=index * 0.1)
    scheduler.tick(now=10.0)
    homes = [set(spread(scheduler, document, 20, now=10.0)) for document in documents]
    assert [len(at) for at in homes] == [1] * 4 and len(set.union(*homes)) == 4
    assert "of two" in chosen(scheduler, system + pages(RNG, 40), now=10.0).reason


def serve(scheduler: GlobalScheduler, path: bytes, count: int, *, now: float) -> None:
    for index in range(count):
        name = f"s-{now}-{path[:4].hex()}-{index}"
        scheduler.place(route(name, path + pages(RNG, 4)), now=now)
        scheduler.observe(RequestFinished(name, 1, 5), now=now)


def test_hot_keys_go_home_and_the_rest_is_balanced() -> None:
    scheduler = synced_scheduler("cache_route", "abcd")
    hot, other = pages(RNG, 60), pages(RNG, 60)
    serve(scheduler, hot, 30, now=0.0)
    serve(scheduler, other, 30, now=1.0)
    assert "of two" in chosen(scheduler, hot, now=1.0).reason
    scheduler.tick(now=10.0)
    assert "home" in chosen(scheduler, hot + pages(RNG, 9), now=10.0).reason
    homes = [set(spread(scheduler, path, 40, now=10.5)) for path in (hot, other)]
    assert [len(at) for at in homes] == [2, 2] and not homes[0] & homes[1]
    assert "of two" in chosen(scheduler, pages(RNG, 60), now=10.0).reason


def test_the_table_stays_fixed_for_the_interval() -> None:
    scheduler = synced_scheduler("cache_route", "abcd")
    hot = pages(RNG, 60)
    serve(scheduler, hot, 10, now=0.0)
    scheduler.tick(now=10.0)
    rising = pages(RNG, 60)
    serve(scheduler, rising, 50, now=11.0)
    scheduler.tick(now=15.0)
    assert "of two" in chosen(scheduler, rising, now=15.0).reason
    scheduler.tick(now=20.0)
    assert "home" in chosen(scheduler, rising, now=20.0).reason
    assert "home" in chosen(scheduler, hot, now=20.0).reason  # half of 10 is still a rate


def test_a_rate_fades_and_is_forgotten() -> None:
    scheduler = synced_scheduler("cache_route", "abcd")
    hot = pages(RNG, 60)
    serve(scheduler, hot, 5, now=0.0)
    for tick in (10.0, 20.0, 30.0):
        scheduler.tick(now=tick)
        assert ("home" in chosen(scheduler, hot, now=tick).reason) == (tick < 30.0)
    for tick in (40.0, 50.0, 60.0):
        scheduler.tick(now=tick)
    assert scheduler.policy.next_wakeup() is None


def test_a_lost_home_is_no_home() -> None:
    scheduler = synced_scheduler("cache_route", "abcd")
    hot = pages(RNG, 60)
    serve(scheduler, hot, 20, now=0.0)
    serve(scheduler, pages(RNG, 60), 60, now=0.0)
    scheduler.tick(now=10.0)
    home = chosen(scheduler, hot, now=10.0).worker_id
    assert spread(scheduler, hot, 10, now=10.0) == {home: 10}
    scheduler.observe(WorkerLost(home), now=11.0)
    assert "of two" in chosen(scheduler, hot, now=11.0).reason


def test_one_hot_prefix_gets_every_worker_as_its_home() -> None:
    shares = hot_prefix(PretendCluster("cache_route", 4))
    assert max(shares.values()) <= 0.32
