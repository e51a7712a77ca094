"""Many requests of a lost worker: placed again some at a time, and each of them to its end."""

import asyncio

import pytest
from fake_worker import FakeWorker
from router_helpers import assert_exact, cluster, collect, generation_request, num_ready, until

from preble.errors import DeadlineExceeded
from preble.page_keys import pack_tokens
from preble.types import FinishReason
from preble_router.attempts import MOVED_TOKENS, MOVES_PER_TURN
from preble_router.dispatch import Dispatcher, Generation

COUNT = 6 * MOVES_PER_TURN


def start_many(dispatcher: Dispatcher, count: int = COUNT, **options: float) -> list[Generation]:
    return [
        dispatcher.start(generation_request(f"q{i}", seed=i, max_tokens=30, **options))
        for i in range(count)
    ]


def waiting(generations: list[Generation]) -> list[Generation]:
    return [each for each in generations if each.session is None]


async def join(dispatcher: Dispatcher, worker: FakeWorker) -> None:
    num_before = num_ready(dispatcher)
    dispatcher.membership.add(await worker.start())
    await until(lambda: num_ready(dispatcher) == num_before + 1)


async def test_one_turn_of_the_event_loop_places_no_more_than_so_many() -> None:
    lost, other = FakeWorker("w0"), FakeWorker("w1")
    lost.faults.paused = True
    async with cluster(lost) as dispatcher:
        generations = start_many(dispatcher)
        await join(dispatcher, other)
        dispatcher.remove_worker("w0")
        for num_turns in range(1, COUNT // MOVES_PER_TURN + 1):
            assert len(waiting(generations)) == COUNT - num_turns * MOVES_PER_TURN
            await asyncio.sleep(0)  # A turn.
        await asyncio.gather(*map(assert_exact, generations))
        assert dispatcher.attempts.retries_total == COUNT
        await other.stop()


async def test_of_long_prompts_a_turn_places_fewer() -> None:
    limits = {"context_tokens": 1 << 16, "capacity_tokens": 1 << 20}
    lost, other = FakeWorker("w0", **limits), FakeWorker("w1", **limits)
    lost.faults.paused = True
    async with cluster(lost) as dispatcher:
        tokens = pack_tokens([1] * 4 * MOVED_TOKENS)
        generations = [
            dispatcher.start(generation_request(f"q{i}", seed=i, tokens=tokens)) for i in range(20)
        ]
        await join(dispatcher, other)
        dispatcher.remove_worker("w0")
        assert len(waiting(generations)) == 20 - 4  # They count five each.
        await asyncio.gather(*map(assert_exact, generations))
        await other.stop()


async def test_so_it_is_when_a_worker_comes_to_many_that_wait_for_one() -> None:
    lost, late = FakeWorker("w0"), FakeWorker("w1")
    lost.faults.paused = True
    async with cluster(lost) as dispatcher:
        generations = start_many(dispatcher)
        dispatcher.remove_worker("w0")
        assert len(waiting(generations)) == COUNT
        await late.start()
        dispatcher.membership.add(late.address)
        num_waiting = COUNT
        while left := len(waiting(generations)):
            assert num_waiting - left <= MOVES_PER_TURN
            num_waiting = left
            await asyncio.sleep(0)
        await asyncio.gather(*map(assert_exact, generations))
        await late.stop()


async def test_who_ends_while_it_waits_for_its_turn_is_placed_nowhere() -> None:
    lost, other = FakeWorker("w0"), FakeWorker("w1")
    lost.faults.paused = True
    async with cluster(lost) as dispatcher:
        loop = asyncio.get_running_loop()
        late = generation_request("late", max_tokens=30, deadline_at=loop.time() + 0.3)
        generations = [*start_many(dispatcher), dispatcher.start(late)]
        await join(dispatcher, other)
        await asyncio.sleep(late.deadline_at - loop.time() - 0.01)
        dispatcher.remove_worker("w0")
        *others, last = generations
        assert last.session is None
        cancelled = waiting(others)[-1]
        cancelled.cancel()
        with pytest.raises(DeadlineExceeded):
            await collect(last)
        assert (await collect(cancelled))[1][-1].finish_reason is FinishReason.CANCELLED
        await asyncio.gather(*(assert_exact(g) for g in others if g is not cancelled))
        assert cancelled.request_id not in {submit.request_id for submit in other.submits}
        assert dispatcher.attempts.outcomes == {
            "length": COUNT - 1,
            "cancelled": 1,
            "deadline_exceeded": 1,
        }
        await other.stop()


async def test_another_worker_may_be_lost_before_all_have_had_their_turn() -> None:
    first, second, last = (FakeWorker(f"w{i}") for i in range(3))
    first.faults.paused = second.faults.paused = True
    async with cluster(first, second) as dispatcher:
        generations = start_many(dispatcher, 2 * COUNT)
        await join(dispatcher, last)
        dispatcher.remove_worker("w0")
        await asyncio.sleep(0)
        dispatcher.remove_worker("w1")
        assert waiting(generations)
        await asyncio.gather(*map(assert_exact, generations))
        assert dispatcher.attempts.outcomes == {"length": 2 * COUNT}
        await last.stop()
