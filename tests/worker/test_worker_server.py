"""A worker over a real link on loopback: what a router gets, whatever routers and engines do."""

import asyncio
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from worker_link_helpers import COST, VOCAB_SIZE, LinkClient, prompt_of, simulated

from preble.page_keys import pack_tokens
from preble.transport import aio_channel, bearer
from preble.types import FinishReason, SamplingParams
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc
from preble.wire import hello_from_wire
from preble_worker import router_link, server
from preble_worker.config import WorkerConfig
from preble_worker.loop_messages import EngineFailed
from preble_worker.server import WorkerServer
from preble_worker.simulated_engine import simulated_tokens

CONFIG = {"model": "m", "model_path": Path("/nowhere"), "engine": "simulated"}


def oracle(prompt: bytes, count: int, **options) -> list[int]:
    return simulated_tokens(prompt, options.pop("seed", 0), count, VOCAB_SIZE, **options).tolist()


@asynccontextmanager
async def worker(loaded=None, **options):
    """A running worker; stops at once, and nothing of it is left."""
    tasks_before = asyncio.all_tasks()
    loops_before = set(threading.enumerate())
    running = WorkerServer(WorkerConfig(**CONFIG | options), loaded or simulated())
    running.address = await running.start()
    try:
        yield running
    finally:
        await running.stop(drain_seconds=0.0)
    assert {t for t in threading.enumerate() if t.name == "engine-loop"} <= loops_before
    for _ in range(50):
        left = asyncio.all_tasks() - tasks_before
        if not left:
            break
        await asyncio.sleep(0.02)
    assert not left


@asynccontextmanager
async def link(address: str, *args, **options):
    client = await LinkClient.connect(address, *args, **options)
    try:
        yield client
    finally:
        await client.close()


class Gate:
    """A sleep that lasts until the gate is opened."""

    def __init__(self):
        self._open = threading.Event()
        self.entered = threading.Event()

    def __call__(self, seconds: float) -> None:
        self.entered.set()
        self._open.wait(20.0)

    def open(self) -> None:
        self._open.set()


def small_window(address: str) -> grpc.aio.Channel:
    """A channel on which gRPC does not take megabytes ahead on the client's behalf."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096)]
    return grpc.aio.insecure_channel(address, options=options)


def pause(_: float) -> None:
    """A step that takes long enough for others to get a word in."""
    threading.Event().wait(0.005)


# What a router gets


async def test_hello_says_what_the_worker_is():
    async with (
        worker(simulated(num_pages=50, page_tokens=8, max_sequences=9), worker_id="w7") as running,
        link(running.address) as router,
    ):
        spec = hello_from_wire(router.hello)
        assert (spec.worker_id, spec.model, spec.cost) == ("w7", "m", COST)
        assert (spec.page_tokens, spec.capacity_tokens, spec.max_sequences) == (8, 400, 9)
        assert (spec.vocab_size, spec.context_tokens) == (VOCAB_SIZE, 4096)
        assert router.hello.engine == "simulated"
        assert router.hello.version


async def test_tokens_are_the_oracles_and_the_prefix_is_served_from_cache():
    prompt = prompt_of(100)
    async with worker() as running, link(running.address) as router:
        for request_id, cached in (("a", 0), ("b", 96)):
            await router.submit(request_id, prompt, 20, seed=11)
            result = await router.finished(request_id)
            assert result.tokens == oracle(prompt, 20, seed=11)
            assert result.finish_reason is FinishReason.LENGTH
            assert result.cached_tokens == cached
        assert router.steps[-1].load.cached_tokens_total == 96


async def test_many_streams_at_once_lose_and_double_nothing():
    async with worker() as running, link(running.address) as router:
        prompts = {f"r{i}": prompt_of(50 + 7 * i, seed=i % 5) for i in range(120)}
        for request_id, prompt in prompts.items():
            await router.submit(request_id, prompt, 30)
        for request_id, prompt in prompts.items():
            assert (await router.finished(request_id)).tokens == oracle(prompt, 30)


async def test_a_resumed_attempt_goes_on_where_the_other_broke_off():
    prompt, whole = prompt_of(40), oracle(prompt_of(40), 12)
    async with worker() as running, link(running.address) as router:
        delivered = pack_tokens(whole[:5])
        await router.submit("a", prompt + delivered, 12, attempt=2, num_delivered=5)
        assert (await router.finished("a")).tokens == whole[5:]


async def test_a_cancelled_request_ends_within_a_step_and_frees_its_pages():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(64), 4000)
        await router.until(lambda: len(router.requests["a"][0].tokens) > 3)
        assert router.steps[-1].load.used_pages > 4
        await router.cancel("a")
        assert (await router.finished("a")).finish_reason is FinishReason.CANCELLED
        assert router.steps[-1].load.used_pages == 0
        assert router.steps[-1].load.num_running == 0


async def test_cancelling_what_is_unknown_or_another_attempt_changes_nothing():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 30, attempt=2)
        await router.cancel("a", attempt=1)
        await router.cancel("b")
        assert (await router.finished("a")).finish_reason is FinishReason.LENGTH


async def test_a_later_attempt_replaces_an_earlier_one():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 3000, attempt=1)
        await router.until(lambda: bool(router.requests["a"][0].tokens))
        await router.submit("a", prompt_of(20), 5, attempt=2)
        assert (await router.finished("a", attempt=2)).tokens == oracle(prompt_of(20), 5)
        assert (await router.finished("a", attempt=1)).finish_reason is FinishReason.CANCELLED


async def test_a_deadline_is_counted_from_receipt():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 4000, deadline_at=0.1)
        assert (await router.finished("a")).finish_reason is FinishReason.DEADLINE


async def test_impossible_requests_are_refused_with_a_reason_and_others_go_on():
    impossible = {
        "a": (pack_tokens([5, VOCAB_SIZE]), {}, "vocabulary"),
        "b": (b"", {}, "whole tokens"),
        "c": (prompt_of(5000), {}, ""),
        "d": (prompt_of(9), {"sampling": SamplingParams(max_tokens=1, top_p=0.0)}, "top_p"),
    }
    async with worker() as running, link(running.address) as router:
        for request_id, (prompt, options, _) in impossible.items():
            await router.submit(request_id, prompt, 4, **options)
        for request_id, (_, _, words) in impossible.items():
            refused = await router.finished(request_id)
            assert refused.finish_reason is FinishReason.REFUSED
            assert words in refused.error
            assert refused.error
        await router.submit("e", prompt_of(20), 4)
        assert (await router.finished("e")).tokens == oracle(prompt_of(20), 4)


async def test_an_idle_worker_is_heard_from_its_step_loop():
    async with worker() as running, link(running.address) as router:
        first, second = await router.next_step(), await router.next_step()
        assert first.phase == second.phase == pb.PHASE_IDLE
        assert first.step == second.step == 0
        assert first.step_seconds == 0.0
        assert first.load.free_pages == 400


# What the cache events say


async def test_events_lead_where_snapshots_say_under_page_pressure():
    """`LinkClient` asserts it: no gap, digests equal, and each snapshot equals the replay."""
    async with worker(simulated(num_pages=40)) as running, link(running.address) as router:
        for i in range(60):
            await router.submit(f"r{i}", prompt_of(30 + 11 * (i % 20), seed=i % 6), 20)
            if i % 10 == 9:
                await router.send(snapshot_request=pb.SnapshotRequest())
        for i in range(60):
            assert (await router.finished(f"r{i}")).finish_reason is FinishReason.LENGTH
        await router.until(lambda: len(router.snapshots) == 7)
        kinds = {e.WhichOneof("event") for s in router.steps for e in s.cache.events}
        assert kinds == {"stored", "evicted"}
        async with link(running.address, "r2") as late:
            await router.send(snapshot_request=pb.SnapshotRequest())
            await router.until(lambda: len(router.snapshots) == 8)
            assert late.held.paths == router.held.paths
            assert late.held.paths


async def test_a_router_that_returns_finds_the_cache_in_its_snapshot():
    async with worker() as running:
        async with link(running.address) as router:
            await router.submit("a", prompt_of(200), 4)
            await router.finished("a")
            held, epoch = set(router.held.paths), router.hello.epoch
        async with link(running.address) as router:
            assert router.hello.epoch == epoch
            assert router.held.paths == held
            assert len(held) == 12
            await router.submit("a", prompt_of(200), 4)
            assert (await router.finished("a")).cached_tokens == 192


async def test_two_servers_have_two_epochs_the_later_the_larger():
    async with (
        worker() as first,
        link(first.address) as one,
        worker() as second,
        link(second.address) as two,
    ):
        assert one.hello.epoch < two.hello.epoch
        assert one.hello.worker_id != two.hello.worker_id


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
    if bound == "bytes":
        monkeypatch.setattr(router_link, "MAX_PENDING_BYTES", 100_000)
    else:
        monkeypatch.setattr(router_link, "MAX_STUCK_SECONDS", 0.2)
    async with worker() as running, link(running.address, "reads") as reads:
        channel = small_window(running.address)
        deaf = await LinkClient.attach(running.address, "deaf", channel=channel)
        for i in range(40):
            await deaf.submit(f"r{i}", prompt_of(30, seed=i), 4000)
        await reads.until(lambda: reads.steps[-1].load.num_running > 0)
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
        call = channel.stream_stream("/preble.v1.Worker/Link")()
        await call.write(pb.RouterMessage(attach=pb.Attach()).SerializeToString())
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        async with link(running.address) as router:
            await router.submit("a", prompt_of(20), 4)
            await router.finished("a")


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
