"""alise swaps by its estimate of the wait: who stays, who goes out, who is sent for and when."""

import random

import pytest
from worker_helpers import Worker

from preble.cost import CostModel
from preble_worker import swap_ahead
from preble_worker.batch import Batch, Direction
from preble_worker.config import TierConfig
from preble_worker.policies.policy import UNMEASURED

SLOW_TO_COMPUTE = CostModel(
    name="test",
    fixed=0.1,
    per_prefill_token=1.0,
    per_attention=0.0,
    per_decode=0.01,
    per_context_token=0.0,
)
TOKEN_SECONDS = UNMEASURED.decode_seconds(0.0)
"""What alise reckons with, and what a step takes here."""


def make_worker(
    page_seconds: float, *, policy: str = "alise", int8: bool = False, **options: object
) -> Worker:
    """One request runs at a time, and cost nothing is known of but what copies save."""
    tiers = TierConfig(
        host_pages=200, int8=int8, page_copy_seconds=page_seconds, cost=SLOW_TO_COMPUTE
    )
    defaults = {"max_sequences": 1, "context_tokens": 1200, "num_pages": 400}
    return Worker(policy=policy, tiers=tiers, step_seconds=0.02, **{**defaults, **options})


def moved(batches: list[Batch], direction: Direction) -> int:
    moves = [move for batch in batches for move in batch.moves if move.direction is direction]
    return sum(len(move.host_pages) for move in moves)


def preempted(worker: Worker, short_tokens: int) -> None:
    """`long` has 28 tokens, 6 full pages, when `short` takes its place."""
    worker.submit("long", [1] * 8, max_tokens=1000)
    for _ in range(20):
        worker.step()
    worker.submit("short", [2] * 8, max_tokens=short_tokens)
    while not worker.output("short").tokens:
        worker.step()


@pytest.mark.parametrize(
    ("short_tokens", "page_seconds", "leaves"),
    [(10, 0.01, True), (10, 0.03, False), (100, 0.1, True), (100, 0.2, False)],
)
def test_who_waits_for_longer_than_the_way_out_and_in_leaves(
    short_tokens: int, page_seconds: float, leaves: bool
) -> None:
    """Six pages there and back, against 20 ms for each token of the other one."""
    assert leaves is (12 * page_seconds < short_tokens * TOKEN_SECONDS)
    worker = make_worker(page_seconds)
    preempted(worker, short_tokens)
    assert (moved(worker.batches, Direction.OFFLOAD) > 0) is leaves
    worker.run()
    worker.assert_complete()
    assert worker.scheduler.tier_totals.recomputes == 0


def test_others_that_do_not_estimate_waits_offload_at_once() -> None:
    worker = make_worker(0.03, policy="srpt")
    preempted(worker, 10)
    assert moved(worker.batches, Direction.OFFLOAD) == 6


def test_who_stayed_leaves_when_its_wait_becomes_long() -> None:
    worker = make_worker(0.03)
    preempted(worker, 10)
    assert moved(worker.batches, Direction.OFFLOAD) == 0
    for number in range(8):
        worker.submit(f"more{number}", [3 + number] * 8, max_tokens=10)
    worker.step()
    assert moved(worker.batches, Direction.OFFLOAD) == 6
    worker.run()
    worker.assert_complete()


def long_away(page_seconds: float, *, int8: bool = False, num_pages: int = 24) -> Worker:
    """`long` waits, its pages on the host only, while `short` computes a prompt and 30 tokens."""
    options = {"context_tokens": 96, "num_pages": num_pages, "int8": int8}
    worker = make_worker(page_seconds, **options)
    worker.submit("long", [1] * 8, max_tokens=80, ignore_eos=True, predicted_output_tokens=900)
    for _ in range(20):
        worker.step()
    for number in range(3):  # More than the tree can keep beside what it has of `long`.
        worker.submit(f"short{number}", [2 + number] * 50, max_tokens=30, ignore_eos=True)
    while not worker.output("short2").tokens:
        worker.step()
    return worker


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("page_seconds", [0.01, 0.04])
def test_who_will_start_soon_is_sent_for(page_seconds: float, int8: bool) -> None:
    """Its pages cross while `short2` still decodes: no step goes by without a decode."""
    worker = long_away(page_seconds, int8=int8, num_pages=40)
    begun = len(worker.batches)
    before = worker.batches[:begun]
    assert moved(before, Direction.UPLOAD) == 0, "it has 30 tokens to wait"
    while worker.output("short2").finish_reason is None:
        worker.step()
    meanwhile = worker.batches[begun:]
    assert all(batch.num_decodes == 1 for batch in meanwhile)
    num_pages = moved(meanwhile, Direction.UPLOAD)
    assert num_pages >= 4
    first = next(i for i, batch in enumerate(meanwhile) if batch.moves)
    left = (len(meanwhile) - first) * TOKEN_SECONDS
    copy_seconds = num_pages * page_seconds * (0.5 if int8 else 1.0)
    assert left <= 1.2 * copy_seconds + 4 * TOKEN_SECONDS  # A review every four steps.
    batch = worker.step()
    assert batch is not None and len(batch.prefill_tokens) <= 4
    worker.run()
    worker.assert_complete()
    assert moved(worker.batches, Direction.UPLOAD) == num_pages


def test_what_was_sent_for_is_given_back_to_who_needs_the_pages() -> None:
    worker = long_away(0.04, num_pages=40)
    while moved(worker.batches, Direction.UPLOAD) == 0:
        worker.step()
    worker.submit("urgent", [7] * 60, max_tokens=36, ignore_eos=True, priority=1)
    worker.run()
    worker.assert_complete()


@pytest.mark.parametrize("steps", range(4))
def test_who_is_cancelled_on_the_way_in_leaves_nothing(steps: int) -> None:
    worker = long_away(0.04, num_pages=40)
    while moved(worker.batches, Direction.UPLOAD) == 0:
        worker.step()
    for _ in range(steps):
        worker.step()
    worker.scheduler.cancel("long", now=worker.now)
    worker.check()
    del worker.requests["long", 1]
    worker.run()
    worker.assert_complete()


@pytest.mark.parametrize("steps", range(3))
def test_what_was_on_the_way_in_when_the_engine_failed_does_not_count(steps: int) -> None:
    worker = long_away(0.04, num_pages=40)
    while moved(worker.batches, Direction.UPLOAD) == 0:
        worker.step()
    for _ in range(steps):
        worker.step()
    batch = worker.schedule()
    assert batch is not None
    worker.take(worker.scheduler.fail(batch, error="The device is gone.", now=worker.now))
    worker.check()
    worker.run()
    assert worker.output("long").finish_reason is not None and not worker.output("long").error


@pytest.mark.parametrize("seed", [*range(6), 408])
@pytest.mark.parametrize("eager", [False, True])
def test_random_crowds_stay_exact(seed: int, eager: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager: all are sent for at any time, and what came is given back all the time."""
    if eager:
        monkeypatch.setattr(swap_ahead, "FETCH_MARGIN", 1000.0)
        monkeypatch.setattr(swap_ahead, "GROWTH_PAGES", 0)
    rng = random.Random(seed)
    worker = make_worker(
        rng.choice([1e-3, 0.01, 0.05]),
        int8=rng.random() < 0.5,
        max_sequences=rng.choice([1, 2, 4]),
        num_pages=rng.choice([20, 30, 50]),
        context_tokens=70,
    )
    for number in range(14):
        prompt = [9] * rng.randrange(1, 12) + [rng.randrange(3)] * rng.randrange(20)
        predicted = rng.choice([None, 5, 50, 500])
        length = rng.randrange(1, 36)
        worker.submit(
            f"r{number}",
            prompt,
            max_tokens=length,
            ignore_eos=True,
            predicted_output_tokens=predicted,
        )
        for _ in range(rng.choice([0, 1, 3, 9])):
            worker.step()
    worker.scheduler.cancel("r9", now=worker.now)
    worker.requests.pop(("r9", 1))
    worker.run()
    worker.assert_complete()


def test_who_is_sent_for_is_not_sent_for_again_with_another_of_the_same_prefix() -> None:
    """Several that share prefixes wait and come back; with copies of their own it is 93 pages."""
    rng = random.Random(137)
    worker = make_worker(
        rng.choice([0.01, 0.04, 0.1]),
        num_pages=rng.choice([30, 44, 60]),
        max_sequences=rng.choice([2, 4]),
        context_tokens=96,
    )
    prefixes = [[50 + number] * rng.randrange(16, 40) for number in range(3)]
    for number in range(24):
        prompt = [*rng.choice(prefixes), number]
        worker.submit(f"r{number}", prompt, max_tokens=rng.choice([4, 10, 50]), ignore_eos=True)
        for _ in range(rng.choice([0, 2, 8])):
            worker.step()
    worker.run()
    worker.assert_complete()
    assert 0 < moved(worker.batches, Direction.UPLOAD) <= 80
