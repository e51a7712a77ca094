"""How long the router's event loop stands still when a worker dies under many requests.

`python tests/bench/bench_takeover.py` prints, for a worker with so many live requests whose link
breaks beside three others: the longest turn of the event loop, in which every other stream waits,
and when the last of them was placed again; also when as many as can be are placed in one turn. The
wire is in memory; nobody computes.
"""

import asyncio
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_worker import COST, MODEL
from router_helpers import num_ready, router_config, until

from preble.page_keys import pack_tokens
from preble.types import SamplingParams, WorkerSpec
from preble.v1 import worker_pb2 as pb
from preble.wire import hello_to_wire
from preble_router.attempts import MOVES_PER_TURN
from preble_router.dial import Connection
from preble_router.dispatch import Dispatcher, GenerationRequest
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler

PROMPT_TOKENS = 1024
NUM_SHOWN = 32
"""Output tokens of each request at the death, but of the last tenth: those have none."""
WORKERS = ("w0", "w1", "w2", "w3")


class Call:
    """A stream to a worker that says what it is told to."""

    def __init__(self, worker_id: str) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.submits: list[pb.Submit] = []
        spec = WorkerSpec(
            worker_id=worker_id,
            epoch=1,
            model=MODEL,
            page_tokens=16,
            capacity_tokens=1 << 24,
            max_batch_tokens=2048,
            max_sequences=8192,
            context_tokens=1 << 16,
            vocab_size=50_000,
            cost=COST,
        )
        hello = hello_to_wire(spec, version="0", engine="none")
        self.inbox.put_nowait(pb.WorkerMessage(hello=hello))
        self.inbox.put_nowait(pb.WorkerMessage(snapshot=pb.CacheSnapshot(epoch=1)))

    async def read(self) -> Any:
        return await self.inbox.get()

    async def write(self, message: pb.RouterMessage) -> None:
        if message.WhichOneof("message") == "submit":
            self.submits.append(message.submit)

    def cancel(self) -> None:
        self.inbox.put_nowait(grpc.aio.EOF)

    def answer(self) -> None:
        """A step with all output at once, but of the last tenth."""
        tokens = pack_tokens([1] * NUM_SHOWN)
        shown = self.submits[: len(self.submits) * 9 // 10]
        step = pb.StepOutput(
            step=1,
            step_seconds=0.02,
            predicted_step_seconds=0.02,
            load=pb.LoadReport(num_running=len(self.submits), free_pages=1 << 20),
            outputs=[
                pb.RequestOutput(request_id=s.request_id, attempt=1, position=0, tokens=tokens)
                for s in shown
            ],
        )
        self.inbox.put_nowait(pb.WorkerMessage(step=step))


async def nothing() -> None:
    return


async def longest_turn(stop: asyncio.Event) -> float:
    """Of the event loop, until `stop`, in seconds."""
    longest, began_at = 0.0, time.perf_counter()
    while not stop.is_set():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, began_at = max(longest, now - began_at), now
    return longest


async def measure(num_live: int, moves_per_turn: int) -> tuple[float, float]:
    """The longest turn, and seconds from the death to the last placement."""
    calls: dict[str, Call] = {}

    def dial(address: str) -> Connection:
        call = Call(address)
        if address in calls:
            call.inbox = asyncio.Queue()  # It does not come back.
            call.cancel()
        calls.setdefault(address, call)
        return Connection(call, nothing)

    config = router_config(max_live_requests=1 << 20, silence_seconds=3600.0)
    dispatcher = Dispatcher(
        config,
        GlobalScheduler(make_policy("preble"), rng=random.Random(0)),
        moves_per_turn=moves_per_turn,
        dial=dial,
    )
    dispatcher.open()
    dispatcher.membership.add("w0")
    await until(lambda: num_ready(dispatcher) == 1)
    rng = np.random.default_rng(1)
    for index in range(num_live):
        tokens = pack_tokens(rng.integers(0, 50_000, PROMPT_TOKENS))
        sampling = SamplingParams(max_tokens=256)
        request = GenerationRequest(request_id=f"q{index}", tokens=tokens, sampling=sampling)
        dispatcher.start(request)
        if index % 64 == 0:
            await asyncio.sleep(0)
    for name in WORKERS[1:]:
        dispatcher.membership.add(name)
    await until(lambda: num_ready(dispatcher) == len(WORKERS))
    await until(lambda: len(calls["w0"].submits) == num_live)
    live = dispatcher.attempts.live
    calls["w0"].answer()
    await until(lambda: live["q0"].num_output_tokens == NUM_SHOWN)
    stop = asyncio.Event()
    turns = asyncio.create_task(longest_turn(stop))
    await asyncio.sleep(0.05)
    died_at = time.perf_counter()
    calls["w0"].cancel()
    while dispatcher.attempts.retries_total < num_live:  # noqa: ASYNC110 - is no event
        await asyncio.sleep(0.01)
    seconds = time.perf_counter() - died_at
    stop.set()
    longest = await turns
    await dispatcher.close()
    return longest, seconds


def main() -> None:
    """Prints the table."""
    print(f"{PROMPT_TOKENS} prompt tokens each; its worker dies beside {len(WORKERS) - 1} others")
    print(f"{'live requests':>14}{'a turn':>10}{'longest turn (ms)':>20}{'all placed (ms)':>18}")
    logging.disable()
    for num_live in (100, 1000, 4000):
        for moves in (num_live, MOVES_PER_TURN):
            longest, seconds = asyncio.run(measure(num_live, moves))
            print(f"{num_live:>14}{moves:>10}{1000 * longest:>20.1f}{1000 * seconds:>18.0f}")


if __name__ == "__main__":
    main()
