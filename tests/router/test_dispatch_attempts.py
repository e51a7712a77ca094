"""Attempts that break off and workers that break the protocol: what the clients get."""

import asyncio
import time
from dataclasses import replace

import pytest
from fake_worker import FakeWorker
from pretend_logprobs import pretend_logprobs
from router_helpers import (
    PROMPT,
    assert_exact,
    cluster,
    collect,
    generation_request,
    midway,
    num_ready,
    until,
)

from preble.errors import (
    NoWorkers,
    WorkerFailed,
)
from preble.page_keys import pack_tokens
from preble.types import Logprobs
from preble.v1 import worker_pb2 as pb
from preble_router.poison import ALIBI_TOKENS

# Attempts


@pytest.mark.parametrize("how", ["stop", "break_streams"])
async def test_streams_go_on_elsewhere_when_a_link_dies(how: str) -> None:
    dying, other = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(dying, other) as dispatcher:
        ids = [f"q{i}" for i in range(10)]
        fields = {"ttft_slo_seconds": 0.5, "tbt_slo_seconds": 0.25, "tenant": "acme"}
        tasks = await midway(dispatcher, *ids, max_tokens=200, **fields)
        first = {submit.request_id: submit for submit in (*dying.submits, *other.submits)}
        if how == "stop":
            await dying.stop()
        else:
            dying.break_streams()
        await asyncio.gather(*tasks)
        submits = [*other.submits, *dying.submits]  # It may be back soon enough for the last.
        moved = [submit for submit in submits if submit.attempt == 2]
        assert len(moved) == 5
        assert all(submit.num_delivered >= 3 for submit in moved)
        assert all(len(s.tokens) == len(PROMPT) + 4 * s.num_delivered for s in moved)
        assert all(submit.sampling.max_tokens == 200 for submit in moved)
        for submit in moved:
            same = first[submit.request_id]
            assert submit.predicted_output_tokens == same.predicted_output_tokens > 0
            assert (submit.ttft_slo_seconds, submit.tbt_slo_seconds) == (0.5, 0.25)
            assert submit.tenant == "acme"
        assert dispatcher.attempts.retries_total == 5
        assert dispatcher.attempts.outcomes == {"length": 10}


async def test_log_probabilities_go_on_where_they_were() -> None:
    dying, other = FakeWorker("w0"), FakeWorker("w1", tokens_per_step=3)
    async with cluster(dying, other) as dispatcher:
        request = generation_request(max_tokens=200)
        request = replace(request, sampling=replace(request.sampling, top_logprobs=2))
        generation = dispatcher.start(request)
        await until(lambda: generation.num_output_tokens > 3)
        await dying.stop()
        tokens, deltas = await collect(generation)
        assert generation.attempt == 2
    whole = Logprobs.joined([delta.logprobs for delta in deltas if delta.logprobs])
    assert whole == pretend_logprobs(tokens, 2)


@pytest.mark.parametrize("lacking", ["logprobs", "top_tokens", "top_logprobs"])
async def test_a_worker_that_leaves_out_log_probabilities_loses_its_link(lacking: str) -> None:
    def mangle(step: pb.StepOutput) -> pb.StepOutput:
        for output in step.outputs:
            output.ClearField(lacking)
        return step

    broken, other = FakeWorker("w0"), FakeWorker("w1")
    broken.faults.mangle = mangle
    async with cluster(broken, other) as dispatcher:
        request = generation_request()
        request = replace(request, sampling=replace(request.sampling, top_logprobs=1))
        tokens, deltas = await collect(dispatcher.start(request))
        assert len(other.submits) == 1
    whole = Logprobs.joined([delta.logprobs for delta in deltas if delta.logprobs])
    assert whole == pretend_logprobs(tokens, 1)


async def test_a_single_worker_that_breaks_its_link_takes_its_requests_again() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        (task,) = await midway(dispatcher, "q0", max_tokens=200)
        worker.break_streams()
        await task
        assert [submit.attempt for submit in worker.submits] == [1, 2]


async def test_nobody_takes_over_in_time() -> None:
    worker = FakeWorker()
    async with cluster(worker, takeover_seconds=0.2) as dispatcher:
        generation = dispatcher.start(generation_request(max_tokens=1000))
        await until(lambda: generation.num_output_tokens > 3)
        await worker.stop()
        with pytest.raises(WorkerFailed):
            await collect(generation)
        with pytest.raises(NoWorkers):
            dispatcher.start(generation_request())


async def test_attempts_are_limited() -> None:
    """Each worker fails when it has shown enough not to take the request for the cause."""
    workers = [FakeWorker(f"w{i}") for i in range(4)]
    async with cluster(*workers, max_attempts=3) as dispatcher:
        generation = dispatcher.start(generation_request(max_tokens=2000))
        for attempt in (1, 2, 3):
            await until(lambda: generation.attempt == attempt)  # noqa: B023
            await until(lambda: generation.attempt_output_tokens > ALIBI_TOKENS)
            (worker,) = [each for each in workers if each.running]
            worker.faults.engine_error = "boom"
        with pytest.raises(WorkerFailed, match="boom"):
            await collect(generation)
        assert sum(len(worker.submits) for worker in workers) == 3


async def test_who_failed_with_an_engine_waits_for_another_worker_as_in_an_outage() -> None:
    failing, late = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(failing) as dispatcher:
        (task,) = await midway(dispatcher, "q0", max_tokens=200)
        failing.faults.engine_error = "boom"
        await until(lambda: not failing.running)
        await asyncio.sleep(0.1)
        dispatcher.membership.add(await late.start())
        await task
        assert (len(failing.submits), len(late.submits)) == (1, 1)
        await late.stop()


async def test_a_draining_worker_s_requests_go_elsewhere() -> None:
    leaving, other = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(leaving, other) as dispatcher:
        leaving.faults.paused = True
        generations = [dispatcher.start(generation_request(f"q{i}")) for i in range(4)]
        leaving.faults.draining = True
        leaving.faults.paused = False
        await asyncio.gather(*map(assert_exact, generations))
        assert len(other.submits) == 4
        await until(lambda: num_ready(dispatcher) == 1)
        await assert_exact(dispatcher.start(generation_request()))
        assert len(other.submits) == 5


async def test_a_silent_worker_loses_its_requests_and_is_used_again_when_it_speaks() -> None:
    hung, other = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(hung, other, silence_seconds=0.4) as dispatcher:
        tasks = await midway(dispatcher, "q0", "q1", max_tokens=600)
        hung.faults.silent = True
        await until(lambda: len(other.submits) == 2)
        assert [w.state for w in dispatcher.status().workers] == ["suspect", "ready"]
        await until(lambda: len(hung.cancels) == 1)
        hung.faults.silent = False
        await until(lambda: num_ready(dispatcher) == 2)
        await assert_exact(dispatcher.start(generation_request("q2")))
        await assert_exact(dispatcher.start(generation_request("q3")))
        assert len(hung.submits) == 2, "one before, one after its silence"
        await asyncio.gather(*tasks)


async def test_a_lone_silent_worker_keeps_its_requests_until_it_speaks() -> None:
    worker = FakeWorker()
    async with cluster(worker, silence_seconds=0.4) as dispatcher:
        (task,) = await midway(dispatcher, "q0", max_tokens=500)
        worker.faults.silent = True
        await until(lambda: dispatcher.status().workers[0].state == "suspect")
        worker.faults.silent = False
        await task
        assert len(worker.submits) == 1, "the same attempt went on"


async def test_a_lone_worker_that_stays_silent_fails_its_requests() -> None:
    worker = FakeWorker()
    async with cluster(worker, takeover_seconds=0.2, silence_seconds=0.4) as dispatcher:
        generation = dispatcher.start(generation_request(max_tokens=1000))
        await until(lambda: generation.num_output_tokens > 3)
        worker.faults.silent = True
        with pytest.raises(WorkerFailed):
            await collect(generation)


async def test_an_announced_long_step_is_no_silence() -> None:
    worker, other = FakeWorker("w0"), FakeWorker("w1")

    def announce(step: pb.StepOutput) -> pb.StepOutput:
        step.next_step_seconds = 30.0
        return step

    async with cluster(worker, other, silence_seconds=0.4) as dispatcher:
        (task,) = await midway(dispatcher, "q0", max_tokens=500)
        worker.faults.mangle = announce
        await asyncio.sleep(0.05)
        worker.faults.silent = True
        await asyncio.sleep(1.0)
        assert num_ready(dispatcher) == 2
        worker.faults.silent = False
        await task
        assert other.submits == []


async def test_requests_that_a_busy_router_has_not_sent_are_not_taken_for_lost() -> None:
    async with cluster(FakeWorker("w0"), silence_seconds=0.2) as dispatcher:
        session = dispatcher.membership.sessions["w0"]
        heartbeat = pb.StepOutput(phase=pb.PHASE_IDLE, load=pb.LoadReport(free_pages=4096))
        generations = [dispatcher.start(generation_request(f"q{i}")) for i in range(5)]
        for _ in range(3):
            time.sleep(0.3)  # noqa: ASYNC251 - nothing is written meanwhile
            dispatcher.worker_step(session, heartbeat)
        await asyncio.gather(*map(assert_exact, generations))
        assert {generation.attempt for generation in generations} == {1}


# Workers that break the protocol


def once(change: object) -> object:
    """Applies `change` to the first step with output only."""
    done = False

    def mangle(step: pb.StepOutput) -> pb.StepOutput | None:
        nonlocal done
        if done or not step.outputs:
            return step
        done = True
        return change(step)  # type: ignore[operator,no-any-return]

    return mangle


def wrong_position(step: pb.StepOutput) -> pb.StepOutput:
    step.outputs[0].position += 1
    return step


def half_a_token(step: pb.StepOutput) -> pb.StepOutput:
    step.outputs[0].tokens = step.outputs[0].tokens[:-1]
    return step


def duplicated(step: pb.StepOutput) -> pb.StepOutput:
    step.outputs.append(step.outputs[0])
    return step


def too_early_an_end(step: pb.StepOutput) -> pb.StepOutput:
    """The last step came, those before did not."""
    step.outputs[0].tokens = b""
    step.outputs[0].position += 5
    step.outputs[0].finish_reason = pb.FINISH_REASON_STOP
    return step


def too_long_an_output(step: pb.StepOutput) -> pb.StepOutput:
    step.outputs[0].tokens = pack_tokens(range(10_000))
    return step


@pytest.mark.parametrize(
    "change",
    [
        lambda step: None,
        wrong_position,
        half_a_token,
        duplicated,
        too_early_an_end,
        too_long_an_output,
    ],
)
async def test_wrong_output_costs_the_link_and_no_client_a_token(change: object) -> None:
    worker, other = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(worker, other) as dispatcher:
        (task,) = await midway(dispatcher, "q0", max_tokens=200)
        worker.faults.mangle = once(change)  # type: ignore[assignment]
        await task
        assert [submit.attempt for submit in other.submits] == [2]
        await until(lambda: num_ready(dispatcher) == 2)
        assert worker.num_links_total == 2


async def test_output_of_old_attempts_and_strangers_is_dropped() -> None:
    worker = FakeWorker()

    def with_strangers(step: pb.StepOutput) -> pb.StepOutput:
        for output in list(step.outputs):
            old = step.outputs.add()
            old.CopyFrom(output)
            old.attempt -= 1
            stranger = step.outputs.add()
            stranger.CopyFrom(output)
            stranger.request_id = "nobody"
        return step

    worker.faults.mangle = with_strangers
    async with cluster(worker) as dispatcher:
        await assert_exact(dispatcher.start(generation_request()))
        assert worker.num_links_total == 1


async def test_a_lost_end_does_not_hang_the_client() -> None:
    worker = FakeWorker()

    def without_end(step: pb.StepOutput) -> pb.StepOutput | None:
        return None if any(output.finish_reason for output in step.outputs) else step

    worker.faults.mangle = without_end
    async with cluster(worker, silence_seconds=0.4) as dispatcher:
        generation = dispatcher.start(generation_request(max_tokens=5))
        await until(lambda: len(worker.submits) == 1 and not worker.running)
        worker.faults.mangle = lambda step: step
        await assert_exact(generation)
        assert [submit.attempt for submit in worker.submits] == [1, 2]
