"""What a worker stands: many routers, some that leave or do not read, strangers, its own end."""

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from worker_link_helpers import (
    PATIENCE_SECONDS,
    Gate,
    LinkClient,
    link,
    oracle,
    pause,
    prompt_of,
    simulated,
    small_window,
    worker,
)

from preble.transport import aio_channel, bearer
from preble.types import FinishReason
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc
from preble_worker import engine_loop, router_link, server
from preble_worker.config import TierConfig
from preble_worker.loop_messages import EngineFailed

# Several routers


async def test_two_routers_may_use_equal_ids_and_both_hear_every_event():
    first_prompt, second_prompt = prompt_of(100, seed=1), prompt_of(100, seed=2)
    async with (
        worker(simulated(sleep=pause)) as running,
        link(running.address, "r1") as one,
        link(running.address, "r2") as two,
    ):
        await one.submit("a", first_prompt, 20)
        await two.submit("a", second_prompt, 30)
        assert (await one.finished("a")).tokens == oracle(first_prompt, 20)
        assert (await two.finished("a")).tokens == oracle(second_prompt, 30)
        await one.until(lambda: one.steps[-1].load.num_running == 0)
        await two.until(lambda: two.steps[-1].load.num_running == 0)
        assert one.held.paths == two.held.paths
        assert one.held.paths


@pytest.mark.parametrize("how", ["cancel", "half-close", "break"])
async def test_the_requests_of_a_link_end_with_it_and_no_others(how: str):
    async with (
        worker(simulated(sleep=pause)) as running,
        link(running.address, "stays") as stays,
    ):
        await stays.submit("a", prompt_of(30, seed=9), 60)
        leaves = await LinkClient.connect(running.address, "leaves")
        for i in range(5):
            await leaves.submit(f"r{i}", prompt_of(30, seed=i), 4000)
        await leaves.until(lambda: all(c[0].tokens for c in leaves.requests.values()))
        match how:
            case "cancel":
                leaves.call.cancel()
            case "half-close":
                await leaves.call.done_writing()
                await leaves.until(lambda: leaves.ended is not None)
                assert leaves.ended is grpc.StatusCode.OK
            case "break":
                await leaves.channel.close()
        await stays.until(lambda: stays.steps[-1].load.num_running <= 1)
        assert (await stays.finished("a")).tokens == oracle(prompt_of(30, seed=9), 60)
        await stays.until(lambda: stays.steps[-1].load.used_pages == 0)
        await leaves.close()


@pytest.mark.parametrize("bound", ["bytes", "time"])
async def test_a_router_that_does_not_read_is_cut_off(bound: str, monkeypatch):
    async with worker() as running, link(running.address, "reads") as reads:
        channel = small_window(running.address)
        deaf = await LinkClient.attach(running.address, "deaf", channel=channel)
        for i in range(40):
            await deaf.submit(f"r{i}", prompt_of(30, seed=i), 4000)
        if bound == "bytes":
            monkeypatch.setattr(router_link, "MAX_PENDING_BYTES", 100_000)
        else:
            monkeypatch.setattr(router_link, "MAX_STUCK_SECONDS", 0.2)
        await reads.until(lambda: any(s.load.num_running for s in reads.steps))
        await reads.until(lambda: reads.steps[-1].load.num_running == 0)
        deaf.start_reading()
        await deaf.until(lambda: deaf.ended is not None)
        assert deaf.ended is grpc.StatusCode.RESOURCE_EXHAUSTED
        await deaf.close()
        await reads.submit("a", prompt_of(30), 10)
        assert (await reads.finished("a")).tokens == oracle(prompt_of(30), 10)


async def test_a_router_that_reads_slowly_slows_the_worker_and_is_not_cut_off(monkeypatch):
    monkeypatch.setattr(router_link, "LAG_MESSAGES", 8)
    monkeypatch.setattr(router_link, "LAG_PATIENCE_SECONDS", 20.0)
    monkeypatch.setattr(router_link, "MAX_PENDING_BYTES", 60_000)
    async with worker(simulated(num_pages=1000)) as running:
        slow = await LinkClient.attach(running.address, channel=small_window(running.address))
        slow.pause_seconds = 0.002
        slow.start_reading()
        for i in range(20):
            await slow.submit(f"r{i}", prompt_of(30, seed=i), 300)
        for i in range(20):
            result = await slow.finished(f"r{i}")
            assert result.tokens == oracle(prompt_of(30, seed=i), 300)
        await slow.close()


# Calls that are not links


async def test_the_first_message_must_be_attach():
    async with worker() as running, aio_channel(running.address) as channel:
        for first in ([pb.RouterMessage(drain=pb.Drain())], [pb.RouterMessage()], []):
            call = worker_pb2_grpc.WorkerStub(channel).Link(iter(first))
            with pytest.raises(grpc.aio.AioRpcError, match="must be Attach") as raised:
                await call.read()
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_caller_that_says_nothing_is_turned_away(monkeypatch):
    monkeypatch.setattr("preble_worker.service.ATTACH_SECONDS", 0.05)
    async with worker() as running, aio_channel(running.address) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Link()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_unknown_messages_are_ignored():
    async with worker() as running, link(running.address) as router:
        await router.send()
        await router.send(attach=pb.Attach(router_id="again"))
        await router.submit("a", prompt_of(20), 4)
        assert (await router.finished("a")).finish_reason is FinishReason.LENGTH


async def test_garbage_ends_the_link_alone():
    async with worker() as running, aio_channel(running.address) as channel:
        await _send_garbage(channel)
        async with link(running.address) as router:
            await router.submit("a", prompt_of(20), 4)
            await router.finished("a")


async def test_garbage_ends_a_link_whose_hello_is_still_being_written():
    large = "w" * 1_000_000
    async with (
        worker(worker_id=large) as running,
        small_window(running.address) as channel,
    ):
        await _send_garbage(channel, wait_seconds=0.5)


async def _send_garbage(channel: grpc.aio.Channel, wait_seconds: float = 0.0) -> None:
    """Returns when the worker has ended the link."""
    call = channel.stream_stream("/preble.v1.Worker/Link")()
    await call.write(pb.RouterMessage(attach=pb.Attach()).SerializeToString())
    await call.write(b"\xff\xff\xff")
    await asyncio.sleep(wait_seconds)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass


async def test_routers_present_the_token():
    async with worker(token="secret") as running:
        for token in ("", "wrong"):
            async with link(running.address, token=token) as router:
                assert router.ended is grpc.StatusCode.UNAUTHENTICATED
        async with link(running.address, token="secret") as router:
            assert router.hello.model == "m"


async def test_health_and_reflection():
    async with worker(token="secret") as running, aio_channel(running.address) as channel:
        for service in ("", "preble.v1.Worker"):
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service)
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]),
            metadata=bearer("secret"),
        )
        services = (await call.read()).list_services_response.service
        assert "preble.v1.Worker" in {s.name for s in services}


async def test_health_says_when_the_step_loop_hangs(monkeypatch):
    monkeypatch.setattr(server, "HANG_SECONDS", 0.5)
    gate = Gate()
    async with (
        worker(simulated(sleep=gate)) as running,
        link(running.address) as router,
        aio_channel(running.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await router.submit("a", prompt_of(20), 1)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        gate.open()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


# The end


async def test_draining_lets_running_requests_end_and_turns_new_ones_away():
    gate = Gate()
    async with worker(simulated(sleep=gate)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 50)
        assert await asyncio.to_thread(gate.entered.wait, 20.0)
        stopping = asyncio.create_task(running.stop(drain_seconds=30.0))
        await asyncio.sleep(0)
        await router.submit("b", prompt_of(20), 50)
        gate.open()
        late = await router.finished("b")
        assert (late.finish_reason, late.error) == (
            FinishReason.ERROR,
            "the worker is draining",
        )
        assert (await router.finished("a")).tokens == oracle(prompt_of(20), 50)
        assert router.steps[-1].phase == pb.PHASE_DRAINING
        await stopping
        await running.wait()
        await router.until(lambda: router.ended is not None)
        assert router.ended is grpc.StatusCode.OK


async def test_a_second_stop_cuts_draining_short():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 4000)
        await router.until(lambda: bool(router.requests["a"][0].tokens))
        first = asyncio.create_task(running.stop(drain_seconds=1e6))
        await router.until(lambda: router.steps[-1].phase == pb.PHASE_DRAINING)
        await running.stop(drain_seconds=0.0)
        await first
        assert len(router.requests["a"][0].tokens) < 4000


async def test_a_router_can_ask_to_drain():
    async with worker() as running, link(running.address) as router:
        await router.send(drain=pb.Drain())
        await running.wait()
        await router.until(lambda: router.ended is not None)


async def test_a_router_that_asks_to_drain_may_set_the_deadline():
    async with worker(drain_seconds=1e6) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 4000)
        await router.until(lambda: router.requests["a"][0].tokens)
        await router.send(drain=pb.Drain(deadline_seconds=0.05))
        await running.wait()
        await router.until(lambda: router.ended is not None)
        assert 0 < len(router.requests["a"][0].tokens) < 4000


async def test_a_failed_step_is_an_error_of_its_requests_and_the_worker_goes_on():
    failing = iter([True, False])

    def sleep(_: float) -> None:
        if next(failing, False):
            raise RuntimeError("device lost")

    async with worker(simulated(sleep=sleep)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 4)
        failed = await router.finished("a")
        assert failed.finish_reason is FinishReason.ERROR
        assert "RuntimeError" in failed.error
        await router.submit("a", prompt_of(20), 4, attempt=2)
        assert (await router.finished("a")).tokens == oracle(prompt_of(20), 4)


async def test_an_engine_beyond_hope_ends_the_worker():
    def sleep(_: float) -> None:
        raise RuntimeError("device lost")

    async with worker(simulated(sleep=sleep)) as running, link(running.address) as router:
        for attempt in (1, 2, 3):
            await router.submit("a", prompt_of(20), 4, attempt=attempt)
            assert (await router.finished("a")).finish_reason is FinishReason.ERROR
        with pytest.raises(EngineFailed, match="3 steps in a row"):
            await running.wait()
        await router.until(lambda: router.ended is not None)


async def test_an_engine_beyond_hope_ends_a_worker_that_can_start_no_thread(monkeypatch):
    """As without memory: it would be left as a process that serves nobody."""

    def sleep(_: float) -> None:
        raise MemoryError

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with worker(simulated(sleep=sleep)) as running, link(running.address) as router:
        for attempt in (1, 2):
            await router.submit("a", prompt_of(20), 4, attempt=attempt)
            assert (await router.finished("a")).finish_reason is FinishReason.ERROR
        monkeypatch.setattr(server.asyncio, "to_thread", refuse)
        await router.submit("a", prompt_of(20), 4, attempt=3)
        with pytest.raises(EngineFailed, match="3 steps in a row"):
            async with asyncio.timeout(30):
                await running.wait()
        monkeypatch.undo()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_step_loop_that_dies_without_a_word_ends_the_worker(monkeypatch):
    """As when there is not even the memory to say why."""

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    async with worker(simulated(sleep=die)) as running, link(running.address) as router:
        monkeypatch.setattr(engine_loop.log, "critical", die)
        await router.submit("a", prompt_of(20), 4)
        with pytest.raises(EngineFailed, match="died without a word"):
            async with asyncio.timeout(30):
                await running.wait()
        await router.until(lambda: router.ended is not None)


async def test_what_is_in_host_memory_is_told_and_comes_back():
    """Two prompts that do not fit the device together, the first of them twice."""
    options = {"num_pages": 40, "tiers": TierConfig(host_pages=100)}
    async with worker(simulated(**options)) as running, link(running.address) as router:
        assert router.hello.host_capacity_tokens == 1600
        for name, seed in (("first", 1), ("other", 2), ("again", 1)):
            await router.submit(name, prompt_of(480, seed), 2)
            collected = await router.finished(name)
            assert collected.tokens == oracle(prompt_of(480, seed), 2)
        assert collected.cached_tokens == 29 * 16
        load = router.steps[-1].load
        assert load.loaded_tokens_total > 0
        events = [e for step in router.steps for e in step.cache.host_events]
        assert events and all(event.WhichOneof("event") == "stored" for event in events)
        async with link(running.address, "r2") as late:
            told = late.snapshots[0].host_paths
            assert sum(map(len, told)) == 8 * load.host_pages
            assert set(told) <= {event.stored.path for event in events}
