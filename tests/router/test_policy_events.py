"""Peers that hear what the caches hold: `cache_aware_spill`, `kv_cost`, `prefix_score_precise`."""

import random

import pytest
from peer_helpers import IDLE, answer, chosen, end, families, put, spread, stored, terms
from routing_helpers import PretendCluster, pages, route, synced_scheduler, worker_spec

from preble.events import CacheEvents, CacheSnapshot, Evicted
from preble.page_keys import KEY_BYTES
from preble.types import LoadReport
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
    WorkerLost,
)

RNG = random.Random(51)


def head_of(path: bytes, num_pages: int, total: int) -> bytes:
    return path[: num_pages * KEY_BYTES] + pages(RNG, total - num_pages)


def report(scheduler: GlobalScheduler, worker_id: str, load: LoadReport) -> None:
    scheduler.observe(StepReport(worker_id=worker_id, load=load), now=0.0)


@pytest.mark.parametrize("policy", ["cache_aware_spill", "kv_cost", "prefix_score_precise"])
def test_they_hear_of_evictions(policy: str) -> None:
    scheduler = synced_scheduler(policy, "abcd")
    path = pages(RNG, 40)
    stored(scheduler, "c", path)
    assert spread(scheduler, path, 8) == {"c": 8}
    scheduler.observe(CacheChanged("c", CacheEvents(1, 2, (Evicted(path, 0),))), now=1.0)
    assert spread(scheduler, path, 40, now=20.0) != {"c": 40}


@pytest.mark.parametrize("policy", ["cache_aware_spill", "kv_cost"])
def test_what_was_only_routed_is_not_held(policy: str) -> None:
    scheduler = synced_scheduler(policy, "ab")
    path = pages(RNG, 40)
    put(scheduler, "b", path)
    assert chosen(scheduler, path).worker_id == "a"


def test_precise_scores_what_it_routed_a_moment_ago() -> None:
    scheduler = synced_scheduler("prefix_score_precise", "abcd")
    path = pages(RNG, 40)
    put(scheduler, "b", path)
    assert chosen(scheduler, path).worker_id == "b"


def test_precise_scores_have_the_weights_of_the_approximate_ones() -> None:
    scheduler = synced_scheduler("prefix_score_precise", "abc")
    path = pages(RNG, 40)
    stored(scheduler, "a", path)
    stored(scheduler, "b", path[: 20 * KEY_BYTES])
    put(scheduler, "c", pages(RNG, 2))
    report(scheduler, "a", LoadReport(num_waiting=8, used_pages=10, free_pages=90))
    report(scheduler, "b", LoadReport(num_waiting=2, used_pages=5, free_pages=95))
    scheduler.tick(now=0.05)
    probe = path + pages(RNG, 1)
    assert terms(scheduler, probe, "prefix") == [3.0, 1.5, 0.0]
    assert terms(scheduler, probe, "queue") == [0.0, 1.5, 2.0]
    assert terms(scheduler, probe, "kv") == [0.0, 1.0, 2.0]


# cache_aware_spill


def test_spill_follows_the_longest_holder_of_more_than_30_percent() -> None:
    scheduler = synced_scheduler("cache_aware_spill", "abcd")
    path = pages(RNG, 100)
    stored(scheduler, "c", path[: 50 * KEY_BYTES])
    stored(scheduler, "d", path[: 60 * KEY_BYTES])
    assert chosen(scheduler, path).worker_id == "d"
    assert chosen(scheduler, head_of(path, 31, 100)).worker_id == "c"  # equal: the first
    put(scheduler, "c", pages(RNG, 2))
    assert chosen(scheduler, head_of(path, 31, 100)).worker_id == "d"  # equal: the fewest
    assert chosen(scheduler, head_of(path, 30, 100)).worker_id == "a"


def test_spill_skips_a_holder_beyond_the_mean() -> None:
    scheduler = synced_scheduler("cache_aware_spill", "abcdefgh")
    path = pages(RNG, 100)
    stored(scheduler, "b", path[: 50 * KEY_BYTES])
    stored(scheduler, "h", path)
    held = put(scheduler, "h", pages(RNG, 2), count=4)
    assert chosen(scheduler, path).worker_id == "h"  # 4 - 0.5 <= 4
    held += put(scheduler, "h", pages(RNG, 2), count=2)
    assert chosen(scheduler, path).worker_id == "b"  # 6 - 0.75 > 4, beyond two deviations (3.97)
    end(scheduler, held[2:])
    assert chosen(scheduler, path).worker_id == "h"


def test_spill_never_fires_on_four_workers_below_86_in_flight() -> None:
    """Two deviations of one busy worker among four are more than it can have beyond the mean."""
    scheduler = synced_scheduler("cache_aware_spill", "abcd")
    path = pages(RNG, 40)
    stored(scheduler, "c", path)
    put(scheduler, "c", path, count=85)
    assert chosen(scheduler, path).worker_id == "c"
    put(scheduler, "c", path)
    assert chosen(scheduler, path).worker_id == "a"


@pytest.mark.parametrize(
    "load",
    [LoadReport(num_waiting=8, free_pages=100), LoadReport(used_pages=80, free_pages=20)],
)
def test_spill_leaves_out_who_is_full(load: LoadReport) -> None:
    scheduler = synced_scheduler("cache_aware_spill", "abcd")
    path = pages(RNG, 40)
    stored(scheduler, "c", path)
    assert chosen(scheduler, path).worker_id == "c"
    report(scheduler, "c", load)
    assert chosen(scheduler, path).worker_id == "a"
    for worker_id in "abd":
        report(scheduler, worker_id, load)
    assert chosen(scheduler, path).worker_id == "c"  # all are out: nobody is


def test_spill_balances_misses_by_load_then_by_what_was_given() -> None:
    scheduler = synced_scheduler("cache_aware_spill", "abcd")
    assert spread(scheduler, b"", 40) == dict.fromkeys("abcd", 10)


def test_spill_gives_a_new_worker_a_quarter_of_the_misses_for_a_minute() -> None:
    scheduler = synced_scheduler("cache_aware_spill", "abc")
    spread(scheduler, b"", 30, now=100.0)
    for worker_id in "abc":
        put(scheduler, worker_id, b"", now=100.0)
    scheduler.observe(WorkerJoined(worker_spec("d")), now=200.0)
    scheduler.observe(SnapshotReceived("d", CacheSnapshot(1, 0, ())), now=200.0)
    put(scheduler, "d", b"", count=3, now=200.0)  # the fewest in flight are others
    share = spread(scheduler, b"", 400, now=230.0)["d"] / 400
    assert 0.18 <= share <= 0.32
    assert spread(scheduler, b"", 100, now=260.0)["d"] == 0


# kv_cost


def costs(scheduler: GlobalScheduler, path: bytes) -> list[float]:
    prefill = terms(scheduler, path, "prefill_blocks")
    decode = terms(scheduler, path, "decode_blocks")
    return [p + d for p, d in zip(prefill, decode, strict=True)]


def test_kv_cost_is_blocks_to_prefill_and_blocks_to_decode() -> None:
    scheduler = synced_scheduler("kv_cost", "ab")
    path = pages(RNG, 50)
    stored(scheduler, "a", path[: 40 * KEY_BYTES])
    prompt = 50 + 5 / 16
    assert costs(scheduler, path) == [prompt - 40 + 50, prompt + 50]
    names = put(scheduler, "a", path)
    waiting = prompt - 40
    assert costs(scheduler, path) == [waiting + prompt - 40 + 50, prompt + 50]
    answer(scheduler, "a", names)  # its prefill is done; its blocks are shared with ours
    assert costs(scheduler, path) == [prompt - 40 + 50, prompt + 50]
    end(scheduler, names)
    assert costs(scheduler, path) == [prompt - 40 + 50, prompt + 50]


def test_kv_cost_loses_affinity_when_one_more_request_is_in_flight() -> None:
    scheduler = synced_scheduler("kv_cost", "ab")
    path = pages(RNG, 200)
    stored(scheduler, "a", path[: 182 * KEY_BYTES])  # 91 % of the prompt
    assert chosen(scheduler, path).worker_id == "a"
    answer(scheduler, "a", put(scheduler, "a", pages(RNG, 200)))
    assert chosen(scheduler, path).worker_id == "b"


def test_kv_cost_is_even_and_lets_only_half_of_a_family_meet() -> None:
    cluster = PretendCluster("kv_cost", 4)
    jobs = families(cluster, 14.0)
    assert max(cluster.shares(jobs).values()) <= 0.3
    assert 0.35 <= cluster.meeting_share(jobs) <= 0.65


def test_kv_cost_forgets_a_lost_worker_with_its_requests() -> None:
    scheduler = synced_scheduler("kv_cost", "ab")
    put(scheduler, "a", pages(RNG, 40), count=3)
    scheduler.observe(WorkerLost("a"), now=1.0)
    scheduler.observe(WorkerJoined(worker_spec("c")), now=1.0)
    scheduler.observe(SnapshotReceived("c", CacheSnapshot(1, 0, ())), now=1.0)
    assert terms(scheduler, b"", "decode_blocks", now=1.0) == [0.0, 0.0]
    assert terms(scheduler, b"", "prefill_blocks", now=1.0) == [5 / 16] * 2


def test_kv_cost_draws_equals_by_lot() -> None:
    scheduler = synced_scheduler("kv_cost", "abcd")
    report(scheduler, "a", IDLE)
    assert set(spread(scheduler, b"", 60)) == set("abcd")
    assert scheduler.place(route("last"), now=0.0).cached_tokens == 0
