"""The planned part of the default policy: which copies are missing, and what follows from it."""

import random

import pytest
from peer_helpers import chosen, end, put, stored
from routing_helpers import COST, Arrival, PretendCluster, pages, poisson, route, synced_scheduler

from preble_router.policies.plan import LIVE_MIN
from preble_router.policies.preble import Preble, PrebleWeights
from preble_router.scheduler import GlobalScheduler

RNG = random.Random(71)


def credits(scheduler: GlobalScheduler, path: bytes) -> list[float]:
    probe = route("probe", path + pages(RNG, 4))
    candidates = scheduler.explain(probe, now=0.0).candidates
    return [-candidate.terms["plan"] for candidate in candidates]


def with_live(count: int) -> tuple[GlobalScheduler, bytes, list[str]]:
    """Worker a holds a key and has `count` live requests of it; b, c and d are idle."""
    scheduler = synced_scheduler(Preble(), "abcd")
    hot = pages(RNG, 64)
    stored(scheduler, "a", hot)
    names = []
    for _ in range(count):
        names += put(scheduler, "a", hot + pages(RNG, 4))
    return scheduler, hot, names


def test_a_key_that_fills_its_holder_misses_a_copy_on_every_other_worker() -> None:
    scheduler, hot, _ = with_live(LIVE_MIN)
    found = credits(scheduler, hot)
    assert found[0] == 0.0
    assert all(credit > COST.prefill_seconds(1024.0, 0.0) for credit in found[1:])
    assert chosen(scheduler, hot + pages(RNG, 4)).worker_id != "a"
    scheduler.check()


def test_what_one_worker_carries_stays_where_it_is() -> None:
    scheduler, hot, _ = with_live(LIVE_MIN - 1)
    assert credits(scheduler, hot) == [0.0] * 4


def test_no_copy_is_missing_while_others_are_as_busy() -> None:
    scheduler, hot, _ = with_live(8)
    for worker_id in "bcd":
        for _ in range(9):
            put(scheduler, worker_id, pages(RNG, 64))
    assert credits(scheduler, hot) == [0.0] * 4


def test_the_request_that_makes_a_copy_counts_at_once() -> None:
    scheduler, hot, _ = with_live(LIVE_MIN)
    put(scheduler, "b", hot + pages(RNG, 4))
    assert credits(scheduler, hot) == [0.0] * 4  # not enough for two holders


def test_a_key_is_hot_only_while_its_requests_live() -> None:
    scheduler, hot, names = with_live(9)
    assert any(credits(scheduler, hot))
    end(scheduler, names)
    assert credits(scheduler, hot) == [0.0] * 4


def in_flight(weights: PrebleWeights) -> float:
    """Largest share where a long prefix is cheap to share and slow to copy, 32 in flight."""
    rng = random.Random(4)
    hot = pages(rng, 400)
    cluster = PretendCluster(Preble(weights), 4)
    times = poisson(rng, 16.0, 250)
    jobs = cluster.run([Arrival(at, hot + pages(rng, 2), 160) for at in times])
    return max(cluster.shares(jobs).values())


def test_one_hot_prefix_reaches_every_worker() -> None:
    with_plan = in_flight(PrebleWeights())
    assert with_plan <= 0.3
    assert with_plan <= in_flight(PrebleWeights(plan=0.0))


@pytest.mark.parametrize("plan", [0.0, 1.0])
def test_families_meet_with_and_without_a_plan(plan: float) -> None:
    rng = random.Random(5)
    families = [pages(rng, 182) for _ in range(8)]
    arrivals = []
    for at in poisson(rng, 14.0, 200):
        family = rng.randrange(8)
        arrivals.append(Arrival(at, families[family] + pages(rng, 18), 60, family))
    cluster = PretendCluster(Preble(PrebleWeights(plan=plan)), 4)
    assert cluster.meeting_share(cluster.run(arrivals)) >= 0.9
