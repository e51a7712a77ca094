"""What the device evicts goes to the host, and comes back to whoever has the same prefix."""

import random

import pytest
from worker_helpers import Worker

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
PROMPT = list(range(100, 140))
"""Ten pages, of which the last token is always computed."""


def tiers(*, host_pages: int = 100, int8: bool = False, page_seconds: float = 0.1) -> TierConfig:
    return TierConfig(
        host_pages=host_pages, int8=int8, page_copy_seconds=page_seconds, cost=SLOW_TO_COMPUTE
    )


def ask(worker: Worker, name: str, prompt: list[int], **fields: object) -> int | None:
    """Serve one request alone; prompt tokens that it did not have to compute."""
    worker.submit(name, prompt, max_tokens=2, ignore_eos=True, **fields)
    worker.run()
    return worker.output(name).cached_tokens


def push_out(worker: Worker, times: int = 4) -> None:
    """Other prompts that need all pages of the device."""
    for number in range(times):
        ask(worker, f"other-{number}-{worker.now}", [number + 1] * 48)


def test_an_evicted_prefix_comes_back_from_the_host() -> None:
    worker = Worker(num_pages=16, tiers=tiers())
    assert ask(worker, "first", PROMPT) == 0
    push_out(worker)
    computed = worker.engine.num_prefill_tokens
    assert ask(worker, "second", [*PROMPT, 7]) == len(PROMPT)
    assert worker.engine.num_prefill_tokens == computed + 1
    worker.assert_complete()
    load = worker.scheduler.load()
    assert load.loaded_tokens_total == len(PROMPT) == load.cached_tokens_total
    assert load.host_pages == len(worker.host_view.pages) > 10
    assert load.preemptions_total == 0


def test_without_the_tier_it_is_computed_again() -> None:
    worker = Worker(num_pages=16)
    ask(worker, "first", PROMPT)
    push_out(worker)
    assert ask(worker, "second", [*PROMPT, 7]) == 0
    assert not worker.host_view.pages and not any(batch.moves for batch in worker.batches)


def evicted(*prompts: list[int]) -> Worker:
    """A worker whose host has all pages of `prompts`, and whose device has none of them."""
    worker = Worker(num_pages=40, tiers=tiers(page_seconds=0.02))
    for number, prompt in enumerate(prompts):
        ask(worker, f"first-{number}", prompt)
    worker.now += 600.0  # Hits of the past count less than these.
    push_out(worker, 6)
    return worker


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside a decode"])
@pytest.mark.parametrize("steps", range(4))
def test_who_needs_what_is_on_its_way_for_another_waits_for_it(busy: bool, steps: int) -> None:
    """Ten pages cross, however many ask for them, and whenever."""
    worker = evicted(PROMPT)
    if busy:
        worker.submit("decodes", [3] * 4, max_tokens=40, ignore_eos=True)
        worker.step()
    computed = worker.engine.num_prefill_tokens
    for number in range(3):
        worker.submit(f"next-{number}", [*PROMPT, number], max_tokens=2, ignore_eos=True)
        for _ in range(steps):
            worker.step()
    worker.run()
    worker.assert_complete()
    assert worker.engine.num_uploaded == len(PROMPT) // 4
    assert worker.engine.num_prefill_tokens == computed + 3
    assert [worker.output(f"next-{n}").cached_tokens for n in range(3)] == [len(PROMPT)] * 3


def test_who_waited_for_another_that_is_cancelled_brings_it_in_itself() -> None:
    worker = evicted(PROMPT)
    worker.submit("decodes", [3] * 4, max_tokens=40, ignore_eos=True)
    worker.step()
    worker.submit("goes", [*PROMPT, 1], max_tokens=2, ignore_eos=True)
    worker.submit("stays", [*PROMPT, 2], max_tokens=2, ignore_eos=True)
    worker.step()
    worker.scheduler.cancel("goes", now=worker.now)
    del worker.requests["goes", 1]
    worker.run()
    worker.assert_complete()
    assert worker.output("stays").cached_tokens == len(PROMPT)


def test_who_shares_only_the_begin_brings_in_the_rest() -> None:
    other = [*PROMPT[:20], *range(200, 220)]
    worker = evicted(PROMPT, other)
    for name, prompt in (("next", PROMPT), ("beside", other)):
        worker.submit(name, [*prompt, 7], max_tokens=2, ignore_eos=True)
    worker.run()
    worker.assert_complete()
    assert worker.engine.num_uploaded == 15


@pytest.mark.parametrize(
    "options",
    [
        {"tiers": tiers(page_seconds=2.5)},
        {"tiers": tiers(int8=True)},
        {"tiers": tiers(), "prefix_caching": False},
    ],
    ids=["slower than computing", "not exact", "not shared"],
)
def test_what_nobody_would_take_is_not_copied(options: dict[str, object]) -> None:
    worker = Worker(num_pages=16, **options)
    ask(worker, "first", PROMPT)
    push_out(worker)
    assert ask(worker, "second", [*PROMPT, 7]) == 0
    worker.assert_complete()
    assert worker.engine.num_offloaded == 0 and not worker.host_view.pages


def test_a_page_is_written_once_while_the_host_has_it() -> None:
    """The prompt goes and comes back three times."""
    worker = Worker(num_pages=16, tiers=tiers())
    for turn in range(3):
        ask(worker, f"again-{turn}", PROMPT)
        push_out(worker)
    worker.assert_complete()
    written = [
        page
        for batch in worker.batches
        for move in batch.moves
        if move.direction is Direction.OFFLOAD
        for page in move.host_pages.tolist()
    ]
    assert len(written) == len(set(written)) == worker.scheduler.load().host_pages
    assert worker.engine.num_uploaded >= 2 * 9


def test_a_leaf_takes_its_prefix_along() -> None:
    """The prefix stays on the device, in use, and still can be read from the host."""
    worker = Worker(num_pages=24, tiers=tiers())
    worker.submit("long", PROMPT, max_tokens=30, ignore_eos=True)
    worker.step()
    for number in range(6):
        worker.submit(f"leaf-{number}", [*PROMPT, *[number] * 8], max_tokens=1)
        worker.step()
    worker.run()
    worker.assert_complete()
    depths = {len(page) // 8 for page in worker.host_view.pages}
    assert depths == set(range(1, max(depths) + 1)) and max(depths) >= 12


def test_the_host_drops_what_was_used_longest_ago() -> None:
    """It has room for two prompts of 12 pages."""
    worker = Worker(num_pages=16, tiers=tiers(host_pages=26))
    ask(worker, "first", PROMPT)
    push_out(worker, 6)
    assert worker.scheduler.load().host_pages <= 26
    assert ask(worker, "left a while ago", [5] * 48) == 44
    assert ask(worker, "long gone", [*PROMPT, 7]) == 0
    worker.assert_complete()


def test_tenants_stay_apart() -> None:
    worker = Worker(num_pages=16, tiers=tiers())
    ask(worker, "first", PROMPT, namespace="a")
    push_out(worker)
    assert ask(worker, "second", [*PROMPT, 7], namespace="b") == 0
    assert ask(worker, "third", [*PROMPT, 7], namespace="a") == len(PROMPT)
    worker.assert_complete()


def test_a_failed_step_leaves_nothing_on_the_host() -> None:
    worker = Worker(num_pages=16, tiers=tiers())
    ask(worker, "first", PROMPT)
    push_out(worker)
    assert worker.host_view.pages
    worker.submit("second", [*PROMPT, 7])
    batch = worker.schedule()
    assert batch is not None and batch.moves
    worker.take(worker.scheduler.fail(batch, error="The device is gone.", now=worker.now))
    worker.check()
    assert not worker.host_view.pages
    del worker.requests["second", 1]
    assert ask(worker, "third", PROMPT) == 0
    worker.assert_complete()


@pytest.mark.parametrize("seed", range(10))
def test_random_crowds_with_common_prefixes_stay_exact(seed: int) -> None:
    """Prefixes that come and go, with preemption, priorities and cancellations."""
    rng = random.Random(seed)
    options = tiers(
        host_pages=rng.choice([8, 40, 200]), page_seconds=rng.choice([0.0, 0.1, 1.0, 3.0])
    )
    worker = Worker(
        policy=rng.choice(["fcfs", "lpm", "preble_groups", "alise", "adaptive"]),
        num_pages=rng.choice([16, 24, 40]),
        context_tokens=64,
        max_sequences=rng.choice([2, 8]),
        tiers=options,
    )
    prefixes = [[100 + p] * rng.randrange(4, 30) for p in range(6)]
    for number in range(40):
        prompt = [*rng.choice(prefixes), *[number] * rng.randrange(1, 9)]
        worker.submit(
            f"r{number}",
            prompt,
            max_tokens=rng.randrange(1, 20),
            ignore_eos=True,
            priority=rng.randrange(2),
        )
        if rng.random() < 0.1:
            worker.scheduler.cancel(f"r{number}", now=worker.now)
            del worker.requests[f"r{number}", 1]
        for _ in range(rng.choice([0, 1, 2, 6])):
            worker.step()
    worker.run()
    worker.assert_complete()
    load = worker.scheduler.load()
    if options.host_pages > 8:
        assert (load.loaded_tokens_total > 0) is (options.page_copy_seconds < 2.0)
