"""Router and simulated workers in one process, over real links: exact streams through failures."""

import asyncio
from contextlib import suppress

from linked_cluster import assert_oracle, dispatcher_over, make_worker, request, running
from router_helpers import num_ready, until

from preble_router.dispatch import Dispatcher
from preble_worker.server import WorkerServer


async def test_streams_are_exact_and_the_prediction_is_the_truth() -> None:
    async with running(make_worker("w0"), make_worker("w1")) as addresses:  # noqa: SIM117
        async with dispatcher_over(*addresses) as dispatcher:
            first = dispatcher.start(request(0))
            await assert_oracle(first)
            generations = [dispatcher.start(request(i)) for i in range(1, 20)]
            await asyncio.gather(*map(assert_oracle, generations))
            workers = dispatcher.status().workers
            actual = sum(worker.actual_cached_tokens_total for worker in workers)
            assert actual == sum(worker.predicted_cached_tokens_total for worker in workers)
            assert actual == sum(w.load.cached_tokens_total for w in workers if w.load)
            assert actual >= 10 * 288  # the policy may make a second copy


async def kill(worker: WorkerServer) -> None:
    """As abruptly as a process in this process can die: its sockets close, nothing is said."""
    await worker._server.stop(None)


async def test_killing_a_worker_mid_stream_loses_no_token() -> None:
    workers = [make_worker("w0"), make_worker("w1")]
    async with running(*workers) as addresses:  # noqa: SIM117
        async with dispatcher_over(*addresses, policy="round_robin") as dispatcher:
            generations = [dispatcher.start(request(i)) for i in range(40)]
            checks = [asyncio.create_task(assert_oracle(each)) for each in generations]
            await until(lambda: all(g.num_output_tokens > 5 for g in generations))
            on_victim = [g for g in generations if g.worker_id == "w0"]
            await kill(workers[0])
            await asyncio.gather(*checks)
            assert len(on_victim) == 20
            assert {g.worker_id for g in generations} == {"w1"}
            assert all(g.attempt == 2 for g in on_victim)
            await until(lambda: num_ready(dispatcher) == 1)
            held = {w.worker_id: w.held_pages for w in dispatcher.status().workers}
            assert held["w0"] == 0 < held["w1"]


async def test_a_new_router_reads_what_the_workers_hold() -> None:
    async with running(make_worker("w0"), make_worker("w1")) as addresses:
        async with dispatcher_over(*addresses, policy="round_robin") as dispatcher:
            await asyncio.gather(*[assert_oracle(dispatcher.start(request(i))) for i in range(10)])
            await until(lambda: _agrees(dispatcher))
            before = _held(dispatcher)
        async with dispatcher_over(*addresses) as dispatcher:
            assert _held(dispatcher) == before
            generation = dispatcher.start(request(3))
            assert generation.predicted_cached_tokens >= 320
            await assert_oracle(generation)


def _held(dispatcher: Dispatcher) -> dict[str, int]:
    return {worker.worker_id: worker.held_pages for worker in dispatcher.status().workers}


def _agrees(dispatcher: Dispatcher) -> bool:
    """The tree says of every worker what the worker says of itself."""
    workers = dispatcher.status().workers
    return all(w.load is not None and w.load.tree_pages == w.held_pages for w in workers)


async def test_a_drained_worker_finishes_its_streams_and_gets_no_more() -> None:
    workers = [make_worker("w0"), make_worker("w1")]
    async with running(*workers) as addresses:  # noqa: SIM117
        async with dispatcher_over(*addresses, policy="round_robin") as dispatcher:
            generations = [dispatcher.start(request(i, max_tokens=200)) for i in range(8)]
            await until(lambda: all(g.num_output_tokens > 0 for g in generations))
            dispatcher.drain_worker("w0")
            later = [dispatcher.start(request(i, max_tokens=20)) for i in range(8, 12)]
            await asyncio.gather(*map(assert_oracle, [*generations, *later]))
            assert all(g.attempt == 1 for g in generations)
            assert {g.worker_id for g in later} == {"w1"}
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await workers[0].wait()
