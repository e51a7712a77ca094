"""A router reduced to its link: submits, collects, and believes what the worker says it holds."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np

from preble.cost import CostModel
from preble.events import CacheEvents, CacheSnapshot, Stored
from preble.page_keys import KEY_BYTES, pack_tokens, unpack_tokens
from preble.transport import aio_channel, bearer
from preble.types import FinishReason, SamplingParams, WorkerRequest
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc
from preble.wire import (
    cache_events_from_wire,
    finish_from_wire,
    snapshot_from_wire,
    submit_to_wire,
)
from preble_worker.config import SchedulerConfig, WorkerConfig
from preble_worker.loaded import LoadedEngine
from preble_worker.server import WorkerServer
from preble_worker.simulated_engine import SimulatedEngine, simulated_tokens

PATIENCE_SECONDS = 30.0
VOCAB_SIZE = 1000
COST = CostModel(
    name="test",
    fixed=1e-3,
    per_prefill_token=1e-6,
    per_attention=0.0,
    per_decode=1e-6,
    per_context_token=0.0,
)


def simulated(
    sleep: Callable[[float], None] = lambda _: None, cost: CostModel = COST, **options
) -> LoadedEngine:
    """A simulated engine that takes no time, or what `sleep` makes of it."""
    scheduler = SchedulerConfig(**{"num_pages": 400, "context_tokens": 4096} | options)
    engine = SimulatedEngine(cost, VOCAB_SIZE, sleep=sleep)
    return LoadedEngine(
        engine=engine, scheduler=scheduler, cost=cost, vocab_size=VOCAB_SIZE, name="simulated"
    )


def prompt_of(length: int, seed: int = 0) -> bytes:
    """A random prompt; equal seeds share their beginning."""
    return pack_tokens(np.random.default_rng(seed).integers(3, VOCAB_SIZE, 10_000)[:length])


class HeldPaths:
    """What a worker holds, as the plainest thing possible: the set of all paths to held pages."""

    def __init__(self, snapshot: CacheSnapshot) -> None:
        self.epoch, self.seq = snapshot.epoch, snapshot.seq
        self.paths: set[bytes] = set()
        for path in snapshot.paths:
            self._store(path)

    def _store(self, path: bytes) -> None:
        ends = range(KEY_BYTES, len(path) + 1, KEY_BYTES)
        self.paths.update(path[:end] for end in ends)

    def apply(self, batch: CacheEvents) -> None:
        assert (batch.epoch, batch.seq) == (self.epoch, self.seq + 1), "a gap in the cache events"
        self.seq = batch.seq
        for event in batch.events:
            if isinstance(event, Stored):
                self._store(event.path)
            else:
                gone = event.path[: (event.keep + 1) * KEY_BYTES]
                self.paths = {path for path in self.paths if not path.startswith(gone)}

    def digest(self) -> tuple[int, int]:
        """As `tree_pages` and `tree_key_sum` of a load report."""
        keys = (int.from_bytes(path[-KEY_BYTES:], "big") for path in self.paths)
        return len(self.paths), sum(keys) % 2**64


@dataclass
class Collected:
    """What came of one attempt."""

    attempt: int
    next_position: int
    tokens: list[int] = field(default_factory=list)
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    error: str = ""


class LinkClient:
    """One link. `connect`, then read the attributes, which a task keeps up to date."""

    def __init__(self, channel: grpc.aio.Channel, call) -> None:
        self.channel = channel
        self.call = call
        self.hello = pb.Hello()
        self.held: HeldPaths | None = None
        self.snapshots: list[CacheSnapshot] = []
        self.steps: list[pb.StepOutput] = []
        self.requests: dict[str, list[Collected]] = {}
        self.ended: grpc.StatusCode | None = None
        self.details = ""
        self.pause_seconds = 0.0
        self.num_snapshot_parts = 0
        self._parts: list[pb.CacheSnapshot] = []
        self._heard = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, address: str, router_id: str = "r1", token: str = "", ca=None):
        """Attach and wait for Hello and the first snapshot."""
        client = await cls.attach(address, router_id, token, ca)
        client.start_reading()
        await client.until(lambda: client.held is not None or client.ended is not None)
        return client

    @classmethod
    async def attach(
        cls, address: str, router_id: str = "r1", token: str = "", ca=None, channel=None
    ):
        """Attach and read nothing."""
        channel = channel or aio_channel(address, ca=ca)
        call = worker_pb2_grpc.WorkerStub(channel).Link(metadata=bearer(token))
        client = cls(channel, call)
        with suppress(grpc.aio.AioRpcError):  # Reading tells why.
            await call.write(pb.RouterMessage(attach=pb.Attach(router_id=router_id)))
        return client

    def start_reading(self) -> None:
        self._reader = asyncio.create_task(self._read())

    async def submit(self, request_id: str, prompt: bytes, max_tokens: int = 8, **options) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, seed=options.pop("seed", 0))
        sampling = options.pop("sampling", sampling)
        request = WorkerRequest(request_id=request_id, tokens=prompt, sampling=sampling, **options)
        collected = Collected(request.attempt, request.num_delivered)
        self.requests.setdefault(request_id, []).append(collected)
        await self.send(submit=submit_to_wire(request, now=0.0))

    async def cancel(self, request_id: str, attempt: int = 1) -> None:
        await self.send(cancel=pb.Cancel(request_id=request_id, attempt=attempt))

    async def send(self, **message) -> None:
        await self.call.write(pb.RouterMessage(**message))

    async def finished(self, request_id: str, attempt: int | None = None) -> Collected:
        """Wait for the end of a request's newest attempt, or of the given one."""
        found = [c for c in self.requests[request_id] if attempt in (None, c.attempt)][-1]
        await self.until(lambda: found.finish_reason is not None)
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something the worker said makes `condition` true."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._heard:
            await self._heard.wait_for(condition)

    async def next_step(self) -> pb.StepOutput:
        """The next step the worker reports."""
        num_steps = len(self.steps)
        await self.until(lambda: len(self.steps) > num_steps)
        return self.steps[num_steps]

    async def close(self) -> None:
        self.call.cancel()
        if self._reader is not None:
            await asyncio.wait([self._reader])
            self._reader.result()
        await self.channel.close()

    async def _read(self) -> None:
        try:
            while (message := await self.call.read()) is not grpc.aio.EOF:
                self._hear(message)
                if self.pause_seconds:
                    await asyncio.sleep(self.pause_seconds)
                async with self._heard:
                    self._heard.notify_all()
            self.ended = await self.call.code()
        except grpc.aio.AioRpcError as error:
            self.ended, self.details = error.code(), error.details() or ""
        except asyncio.CancelledError:
            self.ended = grpc.StatusCode.CANCELLED
        finally:
            async with self._heard:
                self._heard.notify_all()

    def _hear(self, message: pb.WorkerMessage) -> None:
        match message.WhichOneof("message"):
            case "hello":
                assert not self.steps and not self.snapshots
                self.hello = message.hello
            case "snapshot":
                self._parts.append(message.snapshot)
                self.num_snapshot_parts += 1
                if not message.snapshot.more:
                    snapshot, self._parts = snapshot_from_wire(self._parts), []
                    taken = HeldPaths(snapshot)
                    if self.held is not None:
                        assert taken.seq == self.held.seq
                        assert taken.paths == self.held.paths, "the events lead elsewhere"
                    self.held = taken
                    self.snapshots.append(snapshot)
            case "step":
                self._hear_step(message.step)

    def _hear_step(self, step: pb.StepOutput) -> None:
        assert self.held is not None, "a step before the first snapshot"
        self.steps.append(step)
        if step.HasField("cache"):
            self.held.apply(cache_events_from_wire(step.cache))
            assert self.held.digest() == (step.load.tree_pages, step.load.tree_key_sum)
        for output in step.outputs:
            attempts = self.requests[output.request_id]
            collected = [c for c in attempts if c.attempt == output.attempt][-1]
            assert collected.finish_reason is None, "output after the end"
            assert output.position == collected.next_position, "tokens lost or doubled"
            tokens = unpack_tokens(output.tokens).tolist()
            collected.tokens += tokens
            collected.next_position += len(tokens)
            if output.HasField("cached_tokens"):
                collected.cached_tokens = output.cached_tokens
            collected.finish_reason = finish_from_wire(output.finish_reason)
            collected.error = output.error


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
    for _ in range(500):
        loops = {t for t in threading.enumerate() if t.name == "engine-loop"} - loops_before
        left = asyncio.all_tasks() - tasks_before
        if not left and not loops:
            break
        await asyncio.sleep(0.02)
    assert not left
    assert not loops, "where no thread could be started to join it, the step loop ends by itself"


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
