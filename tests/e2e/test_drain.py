"""Workers are emptied, ended and replaced while streams run: no request fails, no token is lost."""

import asyncio
import math

import pytest
from linked_cluster import assert_oracle, dispatcher_over, make_worker, request, running
from router_helpers import num_ready, until

from preble.errors import InvalidRequest
from preble_router.dispatch import Dispatcher, Generation

LONG = 600


def start(dispatcher: Dispatcher, *indexes: int, max_tokens: int = LONG) -> list[Generation]:
    return [dispatcher.start(request(index, max_tokens=max_tokens)) for index in indexes]


async def underway(generations: list[Generation]) -> list[asyncio.Task[None]]:
    """All have some output, and are being checked to their end."""
    checks = [asyncio.create_task(assert_oracle(generation)) for generation in generations]
    await until(lambda: all(generation.num_output_tokens > 3 for generation in generations))
    return checks


async def test_at_the_deadline_of_a_drain_streams_go_on_elsewhere() -> None:
    workers = [make_worker("w0"), make_worker("w1")]
    async with running(*workers) as addresses:  # noqa: SIM117
        async with dispatcher_over(*addresses, policy="round_robin") as dispatcher:
            generations = start(dispatcher, *range(6))
            checks = await underway(generations)
            with pytest.raises(InvalidRequest):
                dispatcher.drain_worker("w0", deadline_seconds=math.inf)
            dispatcher.drain_worker("w0", deadline_seconds=0.2)
            later = start(dispatcher, 6, 7, max_tokens=20)
            assert {generation.worker_id for generation in later} == {"w1"}
            await workers[0].wait()
            await asyncio.gather(*checks, *map(assert_oracle, later))
            moved = [generation for generation in generations if generation.attempt > 1]
            assert {generation.worker_id for generation in generations} == {"w1"}
            assert moved and all(generation.num_failures == 0 for generation in moved)
            assert not dispatcher.attempts.suspects.book.has_suspects


async def test_a_worker_told_to_stop_hands_its_streams_on_at_the_end_of_its_drain_time() -> None:
    workers = [make_worker("w0"), make_worker("w1")]
    async with running(*workers) as addresses:  # noqa: SIM117
        async with dispatcher_over(*addresses, policy="round_robin") as dispatcher:
            generations = start(dispatcher, *range(4))
            checks = await underway(generations)
            await workers[0].stop(drain_seconds=0.1)  # what SIGTERM calls
            await asyncio.gather(*checks)
            assert {generation.worker_id for generation in generations} == {"w1"}
            assert all(generation.num_failures == 0 for generation in generations)


async def test_a_drain_without_an_elsewhere_lets_streams_run_until_there_is_one() -> None:
    workers = [make_worker("w0"), make_worker("w1")]
    async with running(*workers) as addresses:  # noqa: SIM117
        async with dispatcher_over(addresses[0]) as dispatcher:
            generations = start(dispatcher, 0, 1)
            checks = await underway(generations)
            dispatcher.drain_worker("w0", deadline_seconds=0.1)
            await workers[0].wait()
            dispatcher.add_worker(addresses[1])
            await asyncio.gather(*checks)
            assert {generation.worker_id for generation in generations} == {"w1"}


async def test_a_rolling_restart_of_all_workers_fails_no_request() -> None:
    """Streams outlive three restarts and more: each move costs none of their attempts."""
    workers = [make_worker(f"w{i}") for i in range(3)]
    async with running(*workers) as addresses:  # noqa: SIM117
        async with dispatcher_over(*addresses, policy="round_robin") as dispatcher:
            generations = start(dispatcher, *range(9), max_tokens=3000)
            checks = await underway(generations)
            for _ in range(2):
                for index, worker in enumerate(workers):
                    await worker.stop(drain_seconds=0.05)
                    workers[index] = fresh = make_worker(f"w{index}")
                    dispatcher.add_worker(await fresh.start())
                    await until(lambda: num_ready(dispatcher) == 3)
                    generations += (more := start(dispatcher, len(generations), max_tokens=50))
                    checks += map(asyncio.create_task, map(assert_oracle, more))
            assert max(generation.attempt for generation in generations) > 3
            assert all(generation.num_failures == 0 for generation in generations)
            assert dispatcher.attempts.outcomes["worker_failed"] == 0
            await asyncio.gather(*checks)
            for worker in workers:
                await worker.stop(drain_seconds=0.0)
