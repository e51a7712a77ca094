"""How many silent workers are taken out of use, and what a router that was late itself does."""

import asyncio
import time

import pytest
from fake_worker import FakeWorker
from router_helpers import assert_exact, cluster, generation_request, num_ready, until

from preble.errors import NoWorkers
from preble_router.dispatch import Dispatcher


def ejected(dispatcher: Dispatcher) -> set[str]:
    suspended = {view.worker_id for view in dispatcher.scheduler.workers() if view.suspended}
    sessions = dispatcher.membership.sessions.values()
    assert suspended == {session.worker_id for session in sessions if session.ejected}
    return suspended


async def test_never_more_than_half_are_ejected_and_the_latest_to_speak_stay() -> None:
    workers = [FakeWorker(f"w{i}") for i in range(4)]
    async with cluster(*workers, silence_seconds=0.5) as dispatcher:
        for worker in workers[:3]:
            worker.faults.silent = True
            await asyncio.sleep(0.15)
        await until(lambda: num_ready(dispatcher) == 1)
        assert ejected(dispatcher) == {"w0", "w1"}
        generations = [dispatcher.start(generation_request(f"q{i}", seed=i)) for i in range(4)]
        assert {generation.worker_id for generation in generations} == {"w2", "w3"}
        await asyncio.gather(*map(assert_exact, generations))
        assert all(generation.worker_id == "w3" for generation in generations)
        for worker in workers:
            worker.faults.silent = False
        await until(lambda: num_ready(dispatcher) == 4)
        assert ejected(dispatcher) == set()


async def test_when_workers_die_beside_the_silent_ones_half_of_the_rest_stays() -> None:
    workers = [FakeWorker(f"w{i}") for i in range(4)]
    async with cluster(*workers, silence_seconds=0.4) as dispatcher:
        workers[0].faults.silent = True
        await until(lambda: num_ready(dispatcher) == 3)
        workers[1].faults.silent = True
        await until(lambda: num_ready(dispatcher) == 2)
        assert ejected(dispatcher) == {"w0", "w1"}
        await workers[2].stop()
        await until(lambda: ejected(dispatcher) == {"w0"})
        await assert_exact(dispatcher.start(generation_request()))


async def test_of_one_worker_one_may_be_ejected() -> None:
    worker = FakeWorker()
    async with cluster(worker, silence_seconds=0.4) as dispatcher:
        worker.faults.silent = True
        await until(lambda: ejected(dispatcher) == {"w0"})
        with pytest.raises(NoWorkers):
            dispatcher.start(generation_request())


async def test_a_burst_and_a_pause_of_the_router_eject_nobody() -> None:
    workers = [FakeWorker(f"w{i}", tokens_per_step=4) for i in range(4)]
    async with cluster(*workers, silence_seconds=0.5) as dispatcher:
        seen: list[set[str]] = []
        silent = dispatcher.worker_silent
        dispatcher.worker_silent = lambda s: (seen.append({s.worker_id}), silent(s))  # type: ignore[method-assign,assignment,func-returns-value]
        generations = [
            dispatcher.start(generation_request(f"q{i}", seed=i, max_tokens=8)) for i in range(1280)
        ]
        for _ in range(4):  # The event loop stands still, longer in all than the silence allowed.
            time.sleep(0.4)  # noqa: ASYNC251
            await asyncio.sleep(0.01)
        await asyncio.gather(*map(assert_exact, generations))
        assert seen == []
        assert dispatcher.attempts.retries_total == 0
