"""What a request costs the router: dispatcher and real link, the worker in another process.

`python tests/bench/bench_dispatch.py` prints requests/s and the router's CPU time, of all its
threads, per request and per output token. The baseline reads the same stream of messages from the
same worker with a bare gRPC call and throws them away.
"""

import asyncio
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_worker import FakeWorker
from router_helpers import num_ready, router_config, until

from preble.page_keys import pack_tokens
from preble.transport import aio_channel
from preble.types import SamplingParams, WorkerRequest
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc
from preble.wire import submit_to_wire
from preble_router.dispatch import Dispatcher, GenerationRequest
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.server import _loop_factory

PROMPT_TOKENS = 1024
OUTPUT_TOKENS = 64
SECONDS = 5.0
TARGET_TOKEN_MICROSECONDS = {32: 60.0, 256: 30.0}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run; the CPU time is the whole process's."""

    requests: int
    seconds: float
    cpu_seconds: float

    def row(self, name: str, streams: int, target: str) -> str:
        """One line of the table."""
        per_request = 1e6 * self.cpu_seconds / self.requests
        return (
            f"{name:<11}{streams:>8}{self.requests / self.seconds:>12.0f}"
            f"{per_request:>18.0f}{per_request / OUTPUT_TOKENS:>16.1f}{target:>10}"
        )


def prompts(count: int) -> list[bytes]:
    """Families of eight that share half of the prompt."""
    rng = np.random.default_rng(1)
    shared = rng.integers(0, 50_000, (count // 8 + 1, PROMPT_TOKENS // 2))
    own = rng.integers(0, 50_000, (count, PROMPT_TOKENS // 2))
    return [pack_tokens(np.concatenate([shared[i // 8], own[i]])) for i in range(count)]


async def dispatch(address: str, streams: int) -> Cost:
    """`streams` consumers, each with one request after another, for `SECONDS`."""
    config = router_config(workers=(address,), silence_seconds=10.0)
    scheduler = GlobalScheduler(make_policy("preble"), rng=random.Random(0))
    dispatcher = Dispatcher(config, scheduler)
    dispatcher.open()
    await until(lambda: num_ready(dispatcher) == 1)
    texts = prompts(1024)
    sampling = SamplingParams(max_tokens=OUTPUT_TOKENS)
    ended = 0
    end_at = time.monotonic() + SECONDS

    async def consume(stream: int) -> None:
        nonlocal ended
        turn = 0
        while time.monotonic() < end_at:
            tokens = texts[(stream * 31 + turn) % len(texts)]
            request = GenerationRequest(
                request_id=f"{stream}-{turn}", tokens=tokens, sampling=sampling
            )
            async for _ in dispatcher.start(request):
                pass
            turn += 1
            ended += 1

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(consume(stream) for stream in range(streams)))
    cost = Cost(ended, time.perf_counter() - began, time.process_time() - cpu)
    await dispatcher.close()
    return cost


async def bare(address: str, streams: int) -> Cost:
    """The same traffic with neither books nor consumers."""
    texts = prompts(1024)
    sampling = SamplingParams(max_tokens=OUTPUT_TOKENS)
    async with aio_channel(address) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Link()
        await call.write(pb.RouterMessage(attach=pb.Attach(router_id="bare")))
        ended = started = 0

        async def submit() -> None:
            nonlocal started
            request = WorkerRequest(
                request_id=str(started), tokens=texts[started % len(texts)], sampling=sampling
            )
            started += 1
            await call.write(pb.RouterMessage(submit=submit_to_wire(request, now=0.0)))

        for _ in range(streams):
            await submit()
        began, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - began < SECONDS:
            message = await call.read()
            for output in message.step.outputs:
                if output.finish_reason:
                    ended += 1
                    await submit()
        cost = Cost(ended, time.perf_counter() - began, time.process_time() - cpu)
        call.cancel()
    return cost


async def serve_worker() -> None:
    """The other process."""
    worker = FakeWorker(step_seconds=0.0005, max_sequences=4096)
    print(await worker.start(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await worker.stop()


def measure(kind: str, streams: int) -> Cost:
    """One run against a fresh worker process."""
    command = [sys.executable, str(Path(__file__).resolve()), "worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        address = worker.stdout.readline().strip()
        run = dispatch if kind == "dispatch" else bare
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(run(address, streams))


def main() -> None:
    """Prints the table."""
    if sys.argv[1:] == ["worker"]:
        asyncio.run(serve_worker())
        return
    print(f"{PROMPT_TOKENS} prompt tokens, {OUTPUT_TOKENS} output tokens, one worker process")
    print(
        f"{'':<11}{'streams':>8}{'requests/s':>12}{'CPU us/request':>18}"
        f"{'CPU us/token':>16}{'target':>10}"
    )
    for streams, target in TARGET_TOKEN_MICROSECONDS.items():
        print(measure("bare", streams).row("bare link", streams, "baseline"))
        print(measure("dispatch", streams).row("dispatcher", streams, f"<= {target:g}"))


if __name__ == "__main__":
    main()
