"""What the wire costs a worker: an engine that takes no time, behind a real link.

Run: python tests/bench/bench_worker_link.py

Baseline: the same scheduler and engine without loop thread, gRPC and messages.
"""

import asyncio
import logging
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import grpc.aio
import numpy as np

from preble.page_keys import pack_tokens
from preble.transport import aio_channel
from preble.types import SamplingParams, WorkerRequest
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc
from preble.wire import submit_to_wire
from preble_worker.config import SchedulerConfig, WorkerConfig
from preble_worker.engines import LLAMA_3_8B_ON_H100
from preble_worker.loaded import LoadedEngine
from preble_worker.scheduler import LocalScheduler
from preble_worker.server import WorkerServer
from preble_worker.simulated_engine import SimulatedEngine

VOCAB_SIZE = 128_256
PROMPT_TOKENS = 64
STREAMS = (32, 256)
SECONDS = 4.0
WARM_UP_SECONDS = 1.0
BARE_STEPS = 3000
STEPS_PER_SECOND_TARGET = 50
"""An H100 decodes about as often with full batches; the worker's host work must vanish in that."""


def load(num_streams: int) -> LoadedEngine:
    return LoadedEngine(
        engine=SimulatedEngine(LLAMA_3_8B_ON_H100, VOCAB_SIZE, time_scale=0.0),
        scheduler=SchedulerConfig(
            num_pages=num_streams * 2000,
            max_batch_tokens=2048,
            max_sequences=num_streams,
            context_tokens=32_000,
        ),
        cost=LLAMA_3_8B_ON_H100,
        vocab_size=VOCAB_SIZE,
        name="simulated",
    )


def requests(num_streams: int) -> list[WorkerRequest]:
    rng = np.random.default_rng(1)
    return [
        WorkerRequest(
            request_id=f"request-{i:026d}",
            tokens=pack_tokens(rng.integers(3, VOCAB_SIZE, PROMPT_TOKENS)),
            sampling=SamplingParams(max_tokens=31_000, seed=i),
        )
        for i in range(num_streams)
    ]


def serve(num_streams: int, pipe: Connection) -> None:
    """In a process of its own: a worker, and its CPU seconds whenever they are asked for."""

    logging.disable(logging.WARNING)

    async def main() -> None:
        config = WorkerConfig(model="m", model_path=Path("/none"), engine="simulated")
        server = WorkerServer(config, load(num_streams))
        pipe.send(await server.start())
        while await asyncio.to_thread(pipe.recv) == "cpu":
            pipe.send(time.process_time())
        await server.stop(drain_seconds=0.0)

    try:
        import uvloop

        uvloop.run(main())
    except ModuleNotFoundError:
        asyncio.run(main())


async def through_link(address: str, num_streams: int, pipe: Connection) -> tuple[float, ...]:
    """Tokens/s, step messages/s, wall µs and the worker's CPU µs per step message."""
    async with aio_channel(address) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Link()
        await call.write(pb.RouterMessage(attach=pb.Attach(router_id="bench")))
        for request in requests(num_streams):
            await call.write(pb.RouterMessage(submit=submit_to_wire(request, now=0.0)))
        num_tokens = num_messages = 0
        cpu = began_at = 0.0
        measuring = False
        warm_at = time.perf_counter() + WARM_UP_SECONDS
        while (message := await call.read()) is not grpc.aio.EOF:
            step = message.step
            num_messages += 1
            num_tokens += sum(len(output.tokens) for output in step.outputs) // 4
            now = time.perf_counter()
            if not measuring and now > warm_at and len(step.outputs) == num_streams:
                measuring, began_at, num_tokens, num_messages = True, now, 0, 0
                pipe.send("cpu")
                cpu = pipe.recv()
            if measuring and now > began_at + SECONDS:
                break
        took = time.perf_counter() - began_at
        pipe.send("cpu")
        cpu = pipe.recv() - cpu
        call.cancel()
    per_message = 1e6 / num_messages
    return num_tokens / took, num_messages / took, took * per_message, cpu * per_message


def without_link(num_streams: int) -> tuple[float, float]:
    """Tokens/s and µs per step of scheduler and engine alone."""
    loaded = load(num_streams)
    scheduler = LocalScheduler(loaded.scheduler, epoch=1)
    for request in requests(num_streams):
        scheduler.add(request, now=0.0)
    num_decoding_steps = 0
    began_at = 0.0
    while num_decoding_steps <= BARE_STEPS:
        batch = scheduler.schedule(now=0.0)
        assert batch is not None
        scheduler.complete(batch, loaded.engine.run(batch), now=0.0)
        if batch.num_decodes == num_streams:
            began_at = began_at or time.perf_counter()
            num_decoding_steps += 1
    per_step = (time.perf_counter() - began_at) / BARE_STEPS
    return num_streams / per_step, 1e6 * per_step


def main() -> None:
    print("A worker whose engine takes no time, one router on loopback, greedy decodes")
    print(
        f"{'streams':>8} {'tokens/s':>10} {'messages/s':>11} {'wall µs/msg':>12} "
        f"{'worker CPU µs/msg':>18} {'no link: tokens/s':>18} {'µs/step':>8} "
        f"{'target tokens/s':>16}"
    )
    spawn = multiprocessing.get_context("spawn")
    for num_streams in STREAMS:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(num_streams, theirs))
        process.start()
        try:
            tokens, messages, wall, cpu = asyncio.run(through_link(ours.recv(), num_streams, ours))
            ours.send("stop")
        finally:
            process.join(20)
            process.kill()
        bare_tokens, bare = without_link(num_streams)
        target = num_streams * STEPS_PER_SECOND_TARGET
        print(
            f"{num_streams:8d} {tokens:10.0f} {messages:11.0f} {wall:12.0f} {cpu:18.0f} "
            f"{bare_tokens:18.0f} {bare:8.0f} {target:16d}"
        )


if __name__ == "__main__":
    main()
