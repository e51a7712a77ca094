"""The peers that keep their own notes of what they routed and hear nothing from the caches."""

import random
from collections import Counter

import pytest
from peer_helpers import chosen, end, hot_prefix, put, spread, terms
from routing_helpers import PretendCluster, pages, route, synced_scheduler

from preble.events import CacheEvents, Evicted, Stored
from preble.page_keys import KEY_BYTES
from preble.types import LoadReport
from preble_router.policies.cache_aware import CacheAware
from preble_router.policies.prefix_score import BLOCKS_MAX
from preble_router.policies.ray_prefix import RayPrefix
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import CacheChanged, RequestFinished, StepReport, WorkerLost

RNG = random.Random(41)
APPROXIMATE = ("cache_aware", "prefix_score", "sigma_gate", "prefix_random", "ray_prefix")


def head_of(path: bytes, num_pages: int, total: int) -> bytes:
    """A prompt of `total` pages that begins with `num_pages` of `path`."""
    return path[: num_pages * KEY_BYTES] + pages(RNG, total - num_pages)


# What they see


@pytest.mark.parametrize("policy", APPROXIMATE)
def test_they_follow_what_they_routed_and_never_hear_of_evictions(policy: str) -> None:
    scheduler = synced_scheduler(policy, "abcd")
    path = pages(RNG, 40)
    end(scheduler, put(scheduler, "c", path))
    gone = (Stored(path), Evicted(path, 0))
    scheduler.observe(CacheChanged("c", CacheEvents(1, 1, gone)), now=1.0)
    assert spread(scheduler, path, 10, now=1.0) == {"c": 10}


@pytest.mark.parametrize("policy", APPROXIMATE)
def test_they_see_no_page_that_they_did_not_route(policy: str) -> None:
    scheduler = synced_scheduler(policy, "abcd")
    path = pages(RNG, 40)
    scheduler.observe(CacheChanged("c", CacheEvents(1, 1, (Stored(path),))), now=0.0)
    name = "match_percent" if policy == "sigma_gate" else "matched_pages"
    name = "prefix" if policy == "prefix_score" else name
    assert terms(scheduler, path, name) == [0.0] * 4


@pytest.mark.parametrize("policy", APPROXIMATE)
def test_a_lost_worker_leaves_their_notes(policy: str) -> None:
    scheduler = synced_scheduler(policy, "abcd")
    path = pages(RNG, 40)
    put(scheduler, "c", path)
    scheduler.observe(WorkerLost("c"), now=1.0)
    name = {"sigma_gate": "match_percent", "prefix_score": "prefix"}.get(policy, "matched_pages")
    assert terms(scheduler, path, name, now=1.0) == [0.0] * 3
    scheduler.check()


# How they fail


@pytest.mark.parametrize("policy", ["cache_aware", "prefix_random", "ray_prefix", "prefix_score"])
def test_one_hot_prefix_with_32_in_flight_goes_to_one_worker(policy: str) -> None:
    assert max(hot_prefix(PretendCluster(policy, 4)).values()) == 1.0


def test_ties_on_the_first_worker_freeze_cache_aware_after_a_quiet_warm_up() -> None:
    scheduler = synced_scheduler("cache_aware", "abcd")
    families = [pages(RNG, 64) for _ in range(8)]
    for index in range(192):
        spread(scheduler, families[index % 8] + pages(RNG, 4), 1, now=float(index))
    burst = Counter(
        scheduler.place(route(f"b{i}", families[i % 8] + pages(RNG, 4)), now=193.0).worker_id
        for i in range(32)
    )
    assert burst["a"] >= 0.95 * 32


def test_a_burst_of_one_snapshot_goes_to_one_worker_under_prefix_score() -> None:
    """What it placed since the last poll it does not see."""
    scheduler = synced_scheduler("prefix_score", "abcd")
    path = pages(RNG, 64)
    end(scheduler, put(scheduler, "b", path))
    for index in range(64):
        name = f"r{index}"
        assert scheduler.place(route(name, path + pages(RNG, 4)), now=0.1).worker_id == "b"


# cache_aware


def test_cache_aware_follows_a_match_of_more_than_30_percent() -> None:
    scheduler = synced_scheduler("cache_aware", "abcd")
    path = pages(RNG, 100)
    end(scheduler, put(scheduler, "c", path))
    assert chosen(scheduler, head_of(path, 31, 100)).worker_id == "c"
    assert chosen(scheduler, head_of(path, 30, 100)).worker_id == "a"  # 0.3 is not more


def test_cache_aware_knows_one_worker_per_prefix_the_latest() -> None:
    scheduler = synced_scheduler("cache_aware", "abcd")
    path = pages(RNG, 20)
    for worker_id in ("c", "b"):
        end(scheduler, put(scheduler, worker_id, path))
    put(scheduler, "b", pages(RNG, 2), count=20)
    assert chosen(scheduler, path).worker_id == "b"


@pytest.mark.parametrize(("on_a", "on_others", "follows"), [(64, 0, True), (65, 0, False)])
def test_cache_aware_is_imbalanced_beyond_64_requests(
    on_a: int, on_others: int, follows: bool
) -> None:
    scheduler = synced_scheduler("cache_aware", "abcd")
    path = pages(RNG, 20)
    put(scheduler, "a", path, count=on_a)
    assert (chosen(scheduler, path).worker_id == "a") == follows
    if not follows:
        assert chosen(scheduler, path).worker_id == "b"


def test_cache_aware_is_not_imbalanced_within_half_as_much_again() -> None:
    scheduler = synced_scheduler("cache_aware", "ab")
    path = pages(RNG, 4)
    put(scheduler, "b", pages(RNG, 4), count=140)
    put(scheduler, "a", path, count=207)
    assert chosen(scheduler, path).worker_id == "a"  # 207 <= 1.5 * 140
    put(scheduler, "a", path, count=4)
    assert chosen(scheduler, path).worker_id == "b"


def test_cache_aware_keeps_its_notes_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = CacheAware()
    monkeypatch.setattr(policy._tree, "pages_max", 100)
    scheduler = synced_scheduler(policy, "ab")
    for index in range(200):
        end(scheduler, put(scheduler, "a", pages(RNG, 10), now=float(index)), now=float(index))
        policy._tree.check()
    assert policy._tree.num_pages(0) <= 100 + 60 * 10  # trimmed every 60 s


# sigma_gate


def test_sigma_gate_drops_locality_for_all_when_the_gate_fires() -> None:
    scheduler = synced_scheduler("sigma_gate", "abcd")
    path = pages(RNG, 20)
    for worker_id in "bcd":
        put(scheduler, worker_id, pages(RNG, 2), count=4)
    put(scheduler, "a", path)
    other = put(scheduler, "b", pages(RNG, 2), count=4)
    assert chosen(scheduler, path).worker_id == "a"  # at most 8 apart
    put(scheduler, "d", pages(RNG, 2), count=6)
    assert chosen(scheduler, path).worker_id == "a"  # the fewest, not the match: 1 against 10
    put(scheduler, "a", path, count=4)
    end(scheduler, other)
    put(scheduler, "d", pages(RNG, 2), count=4)  # a 5, b 4, c 4, d 14
    assert set(spread(scheduler, path, 40)) == {"b", "c"}


def test_sigma_gate_takes_the_best_match_within_a_deviation_of_the_mean() -> None:
    scheduler = synced_scheduler("sigma_gate", "abcd")
    path = pages(RNG, 20)
    end(scheduler, put(scheduler, "b", path[: 10 * KEY_BYTES]))
    put(scheduler, "a", path, count=2)
    put(scheduler, "c", pages(RNG, 2), count=4)  # mean 1.5, deviation 1.66
    assert chosen(scheduler, path).worker_id == "a"
    put(scheduler, "a", path, count=2)  # 4 > mean 2 + deviation 2 is false
    assert chosen(scheduler, path).worker_id == "a"
    put(scheduler, "a", path, count=2)  # 6 > 2.5 + 2.6
    assert chosen(scheduler, path).worker_id == "b"


def test_sigma_gate_forgets_what_is_idle_for_20_minutes() -> None:
    scheduler = synced_scheduler("sigma_gate", "abcd")
    path = pages(RNG, 20)
    end(scheduler, put(scheduler, "c", path))
    spread(scheduler, pages(RNG, 20), 1, now=1199.0)
    assert terms(scheduler, path, "match_percent", now=1199.0)[2] == 100.0
    spread(scheduler, pages(RNG, 20), 1, now=1200.0)
    assert terms(scheduler, path, "match_percent", now=1200.0)[2] == 0.0


# prefix_random


def test_prefix_random_draws_among_the_workers_of_the_longest_match() -> None:
    scheduler = synced_scheduler("prefix_random", "abcd")
    path = pages(RNG, 20)
    for worker_id in ("b", "d"):
        put(scheduler, worker_id, path, count=10)  # load it does not see
    counts = spread(scheduler, path, 60)
    assert set(counts) == {"b", "d"} and min(counts.values()) > 15
    assert set(spread(scheduler, pages(RNG, 20), 1)) <= set("abcd")


def test_prefix_random_matches_in_chunks_of_128_characters() -> None:
    scheduler = synced_scheduler("prefix_random", "abcd")
    path = pages(RNG, 5)
    put(scheduler, "b", path)
    assert terms(scheduler, path, "matched_pages") == [0.0, 4.0, 0.0, 0.0]
    assert terms(scheduler, head_of(path, 3, 6), "matched_pages") == [0.0, 2.0, 0.0, 0.0]


# ray_prefix


def test_ray_prefix_follows_10_percent_and_else_takes_the_smallest_tree() -> None:
    scheduler = synced_scheduler("ray_prefix", "abcd")
    path = pages(RNG, 100)
    put(scheduler, "c", path, count=9)
    for worker_id, count in (("a", 5), ("b", 3), ("d", 4)):
        end(scheduler, put(scheduler, worker_id, pages(RNG, count)))
    assert chosen(scheduler, head_of(path, 10, 100)).worker_id == "c"
    assert chosen(scheduler, head_of(path, 9, 100)).worker_id == "b"


def test_ray_prefix_by_default_ignores_any_imbalance() -> None:
    path = pages(RNG, 20)
    for policy, follows in ((RayPrefix(), True), (RayPrefix(imbalance_max=8), False)):
        scheduler = synced_scheduler(policy, "abcd")
        put(scheduler, "c", path, count=200)
        assert (spread(scheduler, path, 10)["c"] == 10) == follows


# prefix_score


def poll(scheduler: GlobalScheduler, *, now: float) -> None:
    """Let the poll that is due happen at `now`."""
    scheduler.tick(now=now)


def report(scheduler: GlobalScheduler, worker_id: str, *, waiting: int, used: int) -> None:
    load = LoadReport(num_waiting=waiting, used_pages=used, free_pages=1000 - used)
    scheduler.observe(StepReport(worker_id=worker_id, load=load), now=0.0)


def test_prefix_score_is_three_two_and_two_parts() -> None:
    scheduler = synced_scheduler("prefix_score", "abc")
    path = pages(RNG, 40)
    put(scheduler, "a", path)
    report(scheduler, "a", waiting=10, used=200)
    report(scheduler, "b", waiting=5, used=100)
    assert chosen(scheduler, path).worker_id == "a"  # nothing polled yet
    poll(scheduler, now=0.05)
    assert terms(scheduler, path, "prefix") == [3.0, 0.0, 0.0]
    assert terms(scheduler, path, "queue") == [0.0, 1.0, 2.0]
    assert terms(scheduler, path, "kv") == [0.0, 1.0, 2.0]
    assert chosen(scheduler, path).worker_id == "c"  # 4 against 3


def test_prefix_score_polls_every_50_ms_while_anything_is_in_flight() -> None:
    scheduler = synced_scheduler("prefix_score", "ab")
    names = put(scheduler, "a", pages(RNG, 4))
    due = scheduler.policy.next_wakeup()
    assert due == 0.05
    poll(scheduler, now=0.05)
    assert scheduler.policy.next_wakeup() == pytest.approx(0.1)
    for name in names:
        scheduler.observe(RequestFinished(name, 1, 5), now=0.06)
    poll(scheduler, now=0.1)
    assert scheduler.policy.next_wakeup() is None


def test_prefix_score_looks_at_256_blocks_at_most() -> None:
    scheduler = synced_scheduler("prefix_score", "ab")
    path = pages(RNG, BLOCKS_MAX)
    put(scheduler, "a", path + pages(RNG, 50))
    put(scheduler, "b", path)
    assert terms(scheduler, path + pages(RNG, 9), "prefix") == [0.0, 0.0]  # they are equal


def test_prefix_score_notes_31250_blocks_per_worker() -> None:
    scheduler = synced_scheduler("prefix_score", "ab")
    first = pages(RNG, 256)
    for path in [first, *(pages(RNG, 256) for _ in range(122))]:
        end(scheduler, put(scheduler, "a", path))
    assert terms(scheduler, first, "prefix") == [0.0, 0.0]
