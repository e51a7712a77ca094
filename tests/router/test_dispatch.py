"""Requests through the dispatcher over real links: exact output, one end, honest books."""

import asyncio
from time import monotonic

import pytest
from fake_worker import FakeWorker
from router_helpers import (
    PROMPT,
    assert_exact,
    cluster,
    collect,
    expected,
    generation_request,
    midway,
    until,
)

from preble.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NoWorkers,
    Overloaded,
    PromptTooLong,
    WorkerFailed,
    WorkerNotFound,
)
from preble.types import FinishReason

# The life of a request


async def test_a_request_is_answered_exactly() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        generation = dispatcher.start(generation_request())
        assert generation.worker_id == "w0"
        deltas = await assert_exact(generation)
        assert deltas[-1].cached_tokens == 0
        assert dispatcher.num_live == 0
        assert [delta async for delta in generation] == [], "an ended iterator stays ended"


async def test_everything_a_worker_needs_to_know_reaches_it() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        request = generation_request(
            namespace="tenant", priority=3, seed=7, deadline_at=monotonic() + 60
        )
        await assert_exact(dispatcher.start(request))
        (submit,) = worker.submits
        assert (submit.request_id, submit.attempt, submit.num_delivered) == ("q0", 1, 0)
        assert (submit.tokens, submit.namespace, submit.priority) == (PROMPT, "tenant", 3)
        assert 0 < submit.deadline_seconds <= 60
        assert (submit.sampling.max_tokens, submit.sampling.seed) == (20, 7)
        assert submit.predicted_output_tokens > 0


async def test_a_slow_consumer_holds_nobody_up_and_misses_nothing() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        slow = dispatcher.start(generation_request("slow", max_tokens=200))
        await assert_exact(dispatcher.start(generation_request("fast", max_tokens=300)))
        await until(lambda: dispatcher.num_live == 0)
        deltas = await assert_exact(slow)
        assert len(deltas) == 1, "what piled up comes at once"


async def test_many_requests_at_the_same_time() -> None:
    workers = [FakeWorker(f"w{i}", tokens_per_step=3) for i in range(3)]
    async with cluster(*workers) as dispatcher:
        generations = [
            dispatcher.start(generation_request(f"q{i}", seed=i, max_tokens=1 + i % 40))
            for i in range(200)
        ]
        await asyncio.gather(*map(assert_exact, generations))
        assert all(len(worker.submits) in (66, 67) for worker in workers)


# What is refused at the door


async def test_refusals_at_the_door() -> None:
    worker = FakeWorker(context_tokens=200)
    async with cluster(worker, max_live_requests=2) as dispatcher:
        with pytest.raises(InvalidRequest, match="at least one token"):
            dispatcher.start(generation_request(tokens=b""))
        with pytest.raises(DeadlineExceeded):
            dispatcher.start(generation_request(deadline_at=monotonic() - 1))
        with pytest.raises(PromptTooLong, match=r"100 tokens.*101.*200") as caught:
            dispatcher.start(generation_request(max_tokens=101))
        assert (caught.value.num_tokens, caught.value.max_tokens) == (201, 200)
        assert dispatcher.num_live == 0
        worker.faults.paused = True
        one = dispatcher.start(generation_request("q0"))
        with pytest.raises(InvalidRequest, match="in use"):
            dispatcher.start(generation_request("q0"))
        two = dispatcher.start(generation_request("q1"))
        with pytest.raises(Overloaded):
            dispatcher.start(generation_request("q2"))
        worker.faults.paused = False
        await asyncio.gather(assert_exact(one), assert_exact(two))
        await assert_exact(dispatcher.start(generation_request("q0"))), "the id is free again"


async def test_without_workers_nothing_starts() -> None:
    async with cluster() as dispatcher:
        assert not dispatcher.is_ready
        assert dispatcher.context_tokens is None
        with pytest.raises(NoWorkers):
            dispatcher.start(generation_request())


async def test_a_long_request_goes_where_it_fits() -> None:
    small, large = FakeWorker("w0", context_tokens=128), FakeWorker("w1", context_tokens=512)
    async with cluster(small, large) as dispatcher:
        assert dispatcher.context_tokens == 512
        for i in range(4):
            await assert_exact(dispatcher.start(generation_request(f"q{i}", max_tokens=100)))
        assert (len(small.submits), len(large.submits)) == (0, 4)


# Ends other than the good one


async def test_cancelling_frees_the_worker_and_the_books_at_once() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        generation = dispatcher.start(generation_request(max_tokens=1000))
        await until(lambda: generation.num_output_tokens > 3)
        generation.cancel()
        assert dispatcher.num_live == 0
        assert dispatcher.scheduler.workers()[0].live_requests == 0
        generation.cancel()
        tokens, deltas = await collect(generation)
        assert deltas[-1].finish_reason is FinishReason.CANCELLED
        assert expected(generation.request).startswith(tokens)
        await until(lambda: not worker.running)
        assert [c.request_id for c in worker.cancels] == ["q0"], "told once"
        generation.cancel()


async def test_cancelling_before_anything_came_and_after_the_end() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        early = dispatcher.start(generation_request("early"))
        early.cancel()
        assert (await collect(early))[0] == b""
        late = dispatcher.start(generation_request("late"))
        await assert_exact(late)
        late.cancel()
        assert [c.request_id for c in worker.cancels] == ["early"]


async def test_a_waiting_consumer_learns_of_a_cancellation() -> None:
    worker = FakeWorker()
    worker.faults.paused = True
    async with cluster(worker) as dispatcher:
        generation = dispatcher.start(generation_request())
        consumer = asyncio.create_task(collect(generation))
        await asyncio.sleep(0)
        generation.cancel()
        tokens, deltas = await consumer
        assert (tokens, deltas[0].finish_reason) == (b"", FinishReason.CANCELLED)


async def test_a_consumer_that_is_cancelled_leaves_the_generation_usable() -> None:
    worker = FakeWorker()
    worker.faults.paused = True
    async with cluster(worker) as dispatcher:
        generation = dispatcher.start(generation_request())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await collect(generation)
        worker.faults.paused = False
        await assert_exact(generation)


async def test_deadlines_hold_even_if_the_worker_says_nothing() -> None:
    worker = FakeWorker()
    worker.faults.paused = True
    async with cluster(worker) as dispatcher:
        generation = dispatcher.start(generation_request(deadline_at=monotonic() + 0.1))
        with pytest.raises(DeadlineExceeded):
            await collect(generation)
        assert dispatcher.num_live == 0
        assert dispatcher.attempts.outcomes == {"deadline_exceeded": 1}
        await until(lambda: len(worker.cancels) == 1)


async def test_a_request_that_no_worker_can_hold_is_refused_with_the_worker_s_words() -> None:
    workers = [FakeWorker("w0"), FakeWorker("w1")]
    for worker in workers:
        worker.faults.refuse = True
    async with cluster(*workers) as dispatcher:
        with pytest.raises(PromptTooLong, match="longer than this worker's cache"):
            await collect(dispatcher.start(generation_request()))
        assert [len(worker.submits) for worker in workers] == [1, 1]


async def test_an_engine_that_fails_everywhere_is_an_error_for_the_client() -> None:
    workers = [FakeWorker("w0"), FakeWorker("w1")]
    for worker in workers:
        worker.faults.engine_error = "the worker's engine failed"
    async with cluster(*workers) as dispatcher:
        with pytest.raises(WorkerFailed, match="engine failed"):
            await collect(dispatcher.start(generation_request()))
        assert dispatcher.attempts.outcomes == {"worker_failed": 1}


# Operators


async def test_draining_and_removing_workers() -> None:
    first, second = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(first, second) as dispatcher:
        with pytest.raises(WorkerNotFound):
            dispatcher.drain_worker("w9")
        with pytest.raises(WorkerNotFound):
            dispatcher.remove_worker("w9")
        tasks = await midway(dispatcher, "q0", "q1", max_tokens=300)
        dispatcher.drain_worker("w1")
        await until(lambda: second.drained)
        await assert_exact(dispatcher.start(generation_request("q2")))
        assert len(second.submits) == 1
        dispatcher.remove_worker("w1")
        await asyncio.gather(*tasks)
        assert [submit.attempt for submit in first.submits] == [1, 1, 2]
        assert [worker.worker_id for worker in dispatcher.status().workers] == ["w0"]


async def test_explaining_books_nothing() -> None:
    async with cluster(FakeWorker("w0"), FakeWorker("w1")) as dispatcher:
        explanation = dispatcher.explain(PROMPT)
        assert explanation.placement.worker_id in {"w0", "w1"}
        assert {c.worker_id for c in explanation.candidates} == {"w0", "w1"}
        assert sum(view.live_requests for view in dispatcher.scheduler.workers()) == 0


async def test_stopping_lets_requests_finish_and_then_ends_the_rest() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        (short,) = await midway(dispatcher, "short", max_tokens=40)
        await dispatcher.drain(20)
        assert short.done() or dispatcher.num_live == 0
        await short
    async with cluster(FakeWorker()) as dispatcher:
        long = dispatcher.start(generation_request("long", max_tokens=3000))
        await dispatcher.drain(0.05)
        with pytest.raises(NoWorkers, match="shutting down"):
            dispatcher.start(generation_request())
        await dispatcher.close()
        with pytest.raises(WorkerFailed, match="the router stops"):
            await collect(long)
