"""A worker that does what a test tells it: a real `Worker.Link` server on loopback, no engine.

Output token i of a request is `fake_tokens(prompt, ...)[i]`, a function of the prompt without
delivered output, so that any lost, doubled or swapped token shows.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import xxhash
from pretend_logprobs import pretend_logprobs

from preble.cost import CostModel
from preble.page_keys import TOKEN_BYTES, num_tokens, pack_tokens
from preble.transport import Tls, aio_server, listen
from preble.types import TURNED_AWAY, WorkerSpec
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc
from preble.wire import hello_to_wire, logprobs_to_wire

MODEL = "fake"
COST = CostModel(
    name="fake",
    fixed=1e-3,
    per_prefill_token=1e-5,
    per_attention=0.0,
    per_decode=1e-5,
    per_context_token=0.0,
)


def fake_tokens(
    prompt: bytes, count: int, *, start: int = 0, seed: int = 0, vocab_size: int = 50_000
) -> bytes:
    """Output tokens `start` to `start + count` of a request."""
    base = xxhash.xxh3_64_intdigest(prompt, seed)
    return pack_tokens([(base + 7919 * i) % vocab_size for i in range(start, start + count)])


@dataclass
class Running:
    """One submitted attempt."""

    submit: pb.Submit
    position: int = 0

    @property
    def prompt(self) -> bytes:
        end = len(self.submit.tokens) - self.submit.num_delivered * TOKEN_BYTES
        return self.submit.tokens[:end]


@dataclass
class Faults:
    """What goes wrong, and when. All are read at each step.

    Attributes:
        paused: requests are taken and nothing is computed, heartbeats go on.
        silent: nothing is sent at all, the transport goes on.
        draining: submissions are answered with an error that says so.
        refuse: submissions are answered with REFUSED.
        engine_error: submissions are answered with this error.
        mangle: may change a step before it is sent, or drop it by returning None.
    """

    paused: bool = False
    silent: bool = False
    draining: bool = False
    refuse: bool = False
    engine_error: str = ""
    mangle: Callable[[pb.StepOutput], pb.StepOutput | None] = field(default=lambda step: step)


class FakeWorker(worker_pb2_grpc.WorkerServicer):
    """Start it, use `address`, and stop it, abruptly or not.

    Attributes:
        submits, cancels: everything received, in order.
        links: streams that are open now. num_links_total: ever opened.
    """

    def __init__(
        self,
        worker_id: str = "w0",
        *,
        epoch: int = 1,
        step_seconds: float = 0.002,
        tokens_per_step: int = 1,
        **spec: Any,
    ) -> None:
        values: dict[str, Any] = {
            "model": MODEL,
            "page_tokens": 16,
            "capacity_tokens": 65536,
            "max_batch_tokens": 512,
            "max_sequences": 256,
            "context_tokens": 4096,
            "vocab_size": 50_000,
            "cost": COST,
        }
        self.spec = WorkerSpec(worker_id=worker_id, epoch=epoch, **values | spec)
        self.faults = Faults()
        self.submits: list[pb.Submit] = []
        self.cancels: list[pb.Cancel] = []
        self.running: dict[str, Running] = {}
        self.num_links = 0
        self.num_links_total = 0
        self.num_snapshot_requests = 0
        self.drained = False
        self.router_ids: list[str] = []
        self.snapshot_paths: list[bytes] = []
        self.snapshot_seq = 0
        self.step = 0
        self.address = ""
        self._step_seconds = step_seconds
        self._tokens_per_step = tokens_per_step
        self._extra: list[pb.WorkerMessage] = []
        self._breaks = 0
        self._server: grpc.aio.Server | None = None

    async def start(self, *, port: int = 0, token: str = "", tls: Tls | None = None) -> str:
        """Listens; the address."""
        self._server = aio_server((token,) if token else ())
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self._server)
        bound = listen(self._server, f"127.0.0.1:{port}", tls)
        await self._server.start()
        self.address = f"127.0.0.1:{bound}"
        return self.address

    async def stop(self) -> None:
        """At once, as a killed process: streams break, nothing is said."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        self.running.clear()

    def break_streams(self) -> None:
        """Every open stream ends; the process lives on."""
        self._breaks += 1

    def push(self, message: pb.WorkerMessage) -> None:
        """Send this too, before the next step."""
        self._extra.append(message)

    async def Link(
        self, requests: AsyncIterator[pb.RouterMessage], context: Any
    ) -> AsyncIterator[pb.WorkerMessage]:
        self.num_links += 1
        self.num_links_total += 1
        taken: asyncio.Queue[pb.WorkerMessage] = asyncio.Queue()
        attach = await anext(aiter(requests))
        self.router_ids.append(attach.attach.router_id)
        reader = asyncio.create_task(self._read(requests, taken))
        try:
            hello = hello_to_wire(self.spec, version="0", engine="fake")
            yield pb.WorkerMessage(hello=hello)
            yield self._snapshot()
            async for message in self._turn(taken):
                yield message
        finally:
            reader.cancel()
            self.num_links -= 1
            self.running.clear()

    def _snapshot(self) -> pb.WorkerMessage:
        return pb.WorkerMessage(
            snapshot=pb.CacheSnapshot(
                epoch=self.spec.epoch, seq=self.snapshot_seq, paths=self.snapshot_paths
            )
        )

    async def _read(
        self, requests: AsyncIterator[pb.RouterMessage], answers: asyncio.Queue[pb.WorkerMessage]
    ) -> None:
        async for message in requests:
            kind = message.WhichOneof("message")
            if kind == "submit":
                self.submits.append(message.submit)
                self.running[message.submit.request_id] = Running(
                    message.submit, message.submit.num_delivered
                )
            elif kind == "cancel":
                self.cancels.append(message.cancel)
                self.running.pop(message.cancel.request_id, None)
            elif kind == "snapshot_request":
                self.num_snapshot_requests += 1
                answers.put_nowait(self._snapshot())
            elif kind == "drain":
                self.drained = True

    async def _turn(
        self, answers: asyncio.Queue[pb.WorkerMessage]
    ) -> AsyncIterator[pb.WorkerMessage]:
        quiet, breaks = 0.0, self._breaks
        while breaks == self._breaks:
            await asyncio.sleep(self._step_seconds)
            quiet += self._step_seconds
            if self.faults.silent:
                continue
            while not answers.empty():
                yield answers.get_nowait()
            while self._extra:
                yield self._extra.pop(0)
            works = bool(self.running) and not self.faults.paused
            if not works and quiet < 0.05:
                continue
            quiet = 0.0
            step = self.faults.mangle(self._compute() if works else self._heartbeat())
            if step is not None:
                yield pb.WorkerMessage(step=step)

    def _load(self) -> pb.LoadReport:
        return pb.LoadReport(num_running=len(self.running), free_pages=4096)

    def _phase(self) -> pb.Phase:
        if self.faults.draining:
            return pb.PHASE_DRAINING
        return pb.PHASE_COMPUTING if self.running else pb.PHASE_IDLE

    def _heartbeat(self) -> pb.StepOutput:
        return pb.StepOutput(step=self.step, phase=self._phase(), load=self._load())

    def _compute(self) -> pb.StepOutput:
        self.step += 1
        outputs = [self._advance(running) for running in list(self.running.values())]
        for output in outputs:
            if output.finish_reason:
                self.running.pop(output.request_id, None)
        return pb.StepOutput(
            step=self.step,
            phase=self._phase(),
            step_seconds=self._step_seconds,
            predicted_step_seconds=self._step_seconds,
            outputs=outputs,
            load=self._load(),
        )

    def _advance(self, running: Running) -> pb.RequestOutput:
        submit = running.submit
        output = pb.RequestOutput(
            request_id=submit.request_id, attempt=submit.attempt, position=running.position
        )
        if self.faults.draining or self.faults.engine_error:
            output.finish_reason = pb.FINISH_REASON_ERROR
            output.error = self.faults.engine_error or TURNED_AWAY
        elif self.faults.refuse:
            output.finish_reason = pb.FINISH_REASON_REFUSED
            output.error = "longer than this worker's cache"
        else:
            most = submit.sampling.max_tokens
            count = min(self._tokens_per_step, most - running.position)
            output.tokens = fake_tokens(
                running.prompt,
                count,
                start=running.position,
                seed=submit.sampling.seed,
                vocab_size=self.spec.vocab_size,
            )
            output.cached_tokens = 0
            if submit.sampling.HasField("top_logprobs"):
                num_top = submit.sampling.top_logprobs
                logprobs = pretend_logprobs(output.tokens, num_top, start=running.position)
                logprobs_to_wire(logprobs, output)
            running.position += count
            if running.position == most:
                output.finish_reason = pb.FINISH_REASON_LENGTH
        assert num_tokens(output.tokens) <= self._tokens_per_step
        return output
