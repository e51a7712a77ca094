"""Host memory behind the device's pages: what crosses, when, and that no token depends on it."""

import random
from dataclasses import replace

import pytest
from worker_helpers import Worker, make_request

from preble.cost import CostModel
from preble_worker.batch import Direction
from preble_worker.config import TierConfig

SLOW_TO_COMPUTE = CostModel(
    name="test",
    fixed=0.1,
    per_prefill_token=1.0,
    per_attention=0.0,
    per_decode=0.01,
    per_context_token=0.0,
)
SHARED = [9, 8, 7, 6, 5, 4, 3, 2]


def tiers(*, host_pages: int = 100, int8: bool = False, page_seconds: float = 0.1) -> TierConfig:
    return TierConfig(
        host_pages=host_pages, int8=int8, page_copy_seconds=page_seconds, cost=SLOW_TO_COMPUTE
    )


def crowd(worker: Worker, count: int = 6, *, max_tokens: int = 24) -> None:
    """Requests that share a prefix, and outgrow the pages together."""
    for number in range(count):
        prompt = [*SHARED, number, number, number]
        worker.add(make_request(f"r{number}", prompt, max_tokens=max_tokens, ignore_eos=True))


@pytest.mark.parametrize("int8", [False, True])
def test_swapped_requests_go_on_as_if_they_had_not_been(int8: bool) -> None:
    worker = Worker(policy="fcfs", num_pages=20, tiers=tiers(int8=int8))
    crowd(worker)
    worker.run()
    worker.assert_complete()
    totals = worker.scheduler.tier_totals
    assert totals.swaps > 0 and totals.recomputes == 0
    assert totals.offloaded_pages == worker.engine.num_offloaded > 0
    assert totals.uploaded_pages == worker.engine.num_uploaded > 0


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("arrival", range(0, 24, 2))
def test_preemption_at_any_step_loses_nothing(arrival: int, int8: bool) -> None:
    """The long ones arrive so late that the first is preempted at another length each time."""
    worker = Worker(policy="fcfs", num_pages=14, tiers=tiers(int8=int8))
    crowd(worker, 2, max_tokens=30)
    for _ in range(arrival):
        worker.step()
    worker.submit("later", SHARED + [1] * 5, max_tokens=20, priority=1)
    worker.run()
    worker.assert_complete()


@pytest.mark.parametrize("seed", range(12))
def test_random_crowds_stay_exact(seed: int) -> None:
    rng = random.Random(seed)
    options = tiers(
        host_pages=rng.choice([1, 8, 60]),
        int8=rng.random() < 0.5,
        page_seconds=rng.choice([0.0, 0.1, 2.0]),
    )
    if rng.random() < 0.5:
        options = replace(options, int8_page_tokens=7, host_pages=rng.choice([0, 8]))
    policy = rng.choice(["fcfs", "alise", "srpt", "mlfq", "adaptive"])
    worker = Worker(policy=policy, num_pages=rng.choice([16, 24]), context_tokens=64, tiers=options)
    for number in range(14):
        prompt = SHARED[: rng.randrange(1, 9)] + [rng.randrange(3)] * rng.randrange(9)
        worker.submit(f"r{number}", prompt, max_tokens=rng.randrange(1, 30), ignore_eos=True)
        for _ in range(rng.choice([0, 1, 3])):
            worker.step()
    worker.scheduler.cancel("r13", now=worker.now)
    del worker.requests["r13", 1]
    worker.run()
    worker.assert_complete()


def test_clean_pages_are_not_written_twice() -> None:
    worker = Worker(policy="fcfs", num_pages=20, tiers=tiers())
    crowd(worker, max_tokens=40)
    worker.run()
    written: set[int] = set()
    for batch in worker.batches:
        for move in batch.moves:
            if move.direction is Direction.OFFLOAD:
                pages = set(move.host_pages.tolist())
                assert not pages & written, "there was room for all, so each is written once"
                written |= pages
    assert worker.scheduler.load().preemptions_total > worker.scheduler.tier_totals.swaps - 1
    assert written


def test_what_was_paid_for_is_there_when_its_owner_comes_back() -> None:
    """Four are preempted, and the host has room for what one of them computed."""
    worker = Worker(policy="fcfs", num_pages=20, tiers=tiers(host_pages=6))
    crowd(worker)
    worker.run()
    worker.assert_complete()
    totals = worker.scheduler.tier_totals
    assert totals.swaps == 4
    assert totals.uploaded_pages == 4  # The device's tree still had the other two.


@pytest.mark.parametrize(("page_seconds", "swaps"), [(0.1, True), (50.0, False)])
def test_swapping_is_chosen_where_it_is_cheaper(page_seconds: float, swaps: bool) -> None:
    """A page of 4 tokens takes 4 s to compute."""
    worker = Worker(policy="fcfs", num_pages=20, tiers=tiers(page_seconds=page_seconds))
    crowd(worker)
    worker.run()
    worker.assert_complete()
    totals = worker.scheduler.tier_totals
    assert (totals.swaps > 0) is swaps and (totals.recomputes > 0) is not swaps
    assert (worker.engine.num_uploaded > 0) is swaps


def test_a_failed_step_leaves_nothing_that_it_may_have_copied() -> None:
    worker = Worker(policy="fcfs", num_pages=20, tiers=tiers())
    crowd(worker)
    while True:
        batch = worker.schedule()
        assert batch is not None
        if batch.moves:
            break
        worker.complete(batch)
    worker.take(worker.scheduler.fail(batch, error="The device is gone.", now=worker.now))
    worker.check()
    worker.run()
    ended = [received for received in worker.received.values() if not received.error]
    assert len(ended) < len(worker.received)


def test_without_tiers_batches_move_nothing() -> None:
    worker = Worker(policy="fcfs", num_pages=20)
    crowd(worker)
    worker.run()
    worker.assert_complete()
    assert worker.scheduler.load().preemptions_total > 0
    assert not any(
        batch.moves or batch.conversions or batch.hidden_tokens for batch in worker.batches
    )
