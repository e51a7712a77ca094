"""How much longer than predicted a live worker's steps took, from moment to moment.

What a worker says of each step goes to whoever is linked to it, so one more link hears it all.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, Self

import grpc.aio

from preble.transport import aio_channel
from preble.types import WorkerSpec
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc
from preble.wire import hello_from_wire
from preble_loadgen.simulator.faults import Fault

INTERVAL_SECONDS = 0.5
"""Steps that end within it are taken together."""


class TimedStep(NamedTuple):
    """One step, ended at `ended_at` on the clock of `time.perf_counter`.

    `seconds` is the loop's whole turn, with what the worker does between two steps.
    """

    ended_at: float
    seconds: float
    predicted_seconds: float


class WorkerPace:
    """A link that listens; a context manager.

    Attributes:
        spec: what the worker says of itself.
        steps: that it has computed since, the oldest first.
    """

    spec: WorkerSpec

    def __init__(self, address: str) -> None:
        self.steps: list[TimedStep] = []
        self._channel = aio_channel(address)
        self._call = worker_pb2_grpc.WorkerStub(self._channel).Link()
        self._goes_on_since: float | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._call.write(pb.RouterMessage(attach=pb.Attach(router_id="pace")))
        self.spec = hello_from_wire((await self._call.read()).hello)
        self._reader = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._call.cancel()
        if self._reader is not None:
            await asyncio.wait([self._reader])
        await self._channel.close()

    async def _listen(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while (message := await self._call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "step":
                    self._hear(message.step, now=time.perf_counter())

    def _hear(self, step: pb.StepOutput, *, now: float) -> None:
        if step.step_seconds:
            since = self._goes_on_since
            seconds = step.step_seconds if since is None else now - since
            self.steps.append(TimedStep(now, seconds, step.predicted_step_seconds))
        self._goes_on_since = now if step.phase == pb.PHASE_COMPUTING else None


def slowness(steps: Sequence[TimedStep]) -> float:
    """Actual over predicted time of all of them."""
    return sum(s.seconds for s in steps) / sum(s.predicted_seconds for s in steps)


def as_slow_as(steps: Sequence[TimedStep], *, began_at: float) -> tuple[Fault, ...]:
    """What makes a simulated worker that begins at 0 as slow as the live one that computed `steps`
    was since `began_at`.
    """
    intervals: dict[int, list[TimedStep]] = {}
    for step in steps:
        intervals.setdefault(int((step.ended_at - began_at) // INTERVAL_SECONDS), []).append(step)
    return tuple(
        Fault(
            kind="slow",
            at=number * INTERVAL_SECONDS,
            seconds=INTERVAL_SECONDS,
            factor=slowness(within),
        )
        for number, within in sorted(intervals.items())
    )
