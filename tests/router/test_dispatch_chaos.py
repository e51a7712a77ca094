"""Everything goes wrong at random; every request ends once, no token is lost or doubled."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest
from fake_worker import FakeWorker
from pretend_logprobs import pretend_logprobs
from router_helpers import cluster, expected, generation_request, until

from preble.errors import (
    DeadlineExceeded,
    NoWorkers,
    Overloaded,
    PoisonedRequest,
    WorkerFailed,
)
from preble.types import FinishReason
from preble.v1 import worker_pb2 as pb
from preble_router.dispatch import Dispatcher

NUM_REQUESTS = 120


class Chaos:
    """Breaks workers now and then, and repairs them."""

    def __init__(self, workers: list[FakeWorker], rng: random.Random) -> None:
        self._workers = workers
        self._rng = rng
        for worker in workers:
            worker.faults.mangle = self._mangle

    def _mangle(self, step: pb.StepOutput) -> pb.StepOutput | None:
        luck = self._rng.random()
        if not step.outputs or luck > 0.01:
            return step
        if luck < 0.003:
            return None
        if luck < 0.006:
            step.outputs.append(step.outputs[0])
        elif luck < 0.008:
            self._rng.choice(step.outputs).position += 1
        else:
            del step.outputs[0]
        return step

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended`; what was begun is finished."""
        while not ended.is_set():
            await asyncio.sleep(self._rng.uniform(0.01, 0.1))
            worker = self._rng.choice(self._workers)
            match self._rng.randrange(8):
                case 0 | 1 | 2:
                    worker.break_streams()
                case 3 | 4:
                    port = int(worker.address.rpartition(":")[2])
                    await worker.stop()
                    await worker.start(port=port)
                case 5 | 6:
                    worker.faults.silent = True
                    await asyncio.sleep(self._rng.uniform(0.0, 0.8))
                    worker.faults.silent = False
                case 7:
                    worker.faults.engine_error = "boom"
                    await asyncio.sleep(0.005)
                    worker.faults.engine_error = ""

    def repair(self) -> None:
        for worker in self._workers:
            worker.faults.silent = False
            worker.faults.engine_error = ""
            worker.faults.mangle = lambda step: step


async def run_one(dispatcher: Dispatcher, index: int, rng: random.Random) -> str:
    """One client: how its request ended."""
    await asyncio.sleep(rng.uniform(0.0, 2.0))
    deadline = asyncio.get_running_loop().time() + rng.uniform(0.05, 2) if index % 7 == 0 else None
    request = generation_request(
        f"q{index}", seed=index, max_tokens=rng.randrange(1, 300), deadline_at=deadline
    )
    num_top = index % 3 or None
    request = replace(request, sampling=replace(request.sampling, top_logprobs=num_top))
    while True:
        try:
            generation = dispatcher.start(request)
            break
        except NoWorkers:
            await asyncio.sleep(0.05)
        except (DeadlineExceeded, Overloaded):
            return "deadline"
        except PoisonedRequest:  # one that is just like it had two workers fail under it
            return "poisoned"
    give_up_after = rng.randrange(100) if index % 5 == 0 else None
    whole = expected(request)
    tokens, reason = b"", None
    try:
        async for delta in generation:
            told = None
            if num_top and delta.tokens:
                told = pretend_logprobs(delta.tokens, num_top, start=len(tokens) // 4)
            assert delta.logprobs == told
            tokens += delta.tokens
            reason = delta.finish_reason
            if give_up_after is not None and len(tokens) // 4 > give_up_after:
                generation.cancel()
    except WorkerFailed:
        assert whole.startswith(tokens)
        return "failed"
    except PoisonedRequest:
        # Chance may break two workers in a row with the same request on them, and no other.
        assert whole.startswith(tokens)
        return "poisoned"
    except DeadlineExceeded:
        assert whole.startswith(tokens)
        return "deadline"
    if reason is FinishReason.LENGTH:
        assert tokens == whole
    else:
        assert reason is FinishReason.CANCELLED
        assert whole.startswith(tokens)
    return str(reason)


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_request_ends_once_and_exactly(seed: int) -> None:
    rng = random.Random(seed)
    workers = [FakeWorker(f"w{i}") for i in range(3)]
    async with cluster(*workers, silence_seconds=0.3, max_attempts=8) as dispatcher:
        chaos = Chaos(workers, rng)
        all_ended = asyncio.Event()
        trouble = asyncio.create_task(chaos.run(all_ended))
        clients = [
            asyncio.create_task(run_one(dispatcher, index, rng)) for index in range(NUM_REQUESTS)
        ]
        while not all(client.done() for client in clients):
            await asyncio.sleep(0.05)
            dispatcher.scheduler.check()
            assert sum(v.live_requests for v in dispatcher.scheduler.workers()) <= (
                dispatcher.num_live
            )
        all_ended.set()
        await trouble
        chaos.repair()
        ends = Counter([await client for client in clients])
        assert dispatcher.num_live == 0
        assert dispatcher.attempts.retries_total > 0, "there was trouble"
        assert ends["length"] > 10, "many survived it"
        assert ends["poisoned"] < ends["length"], "few are blamed for what chance did"
        await until(lambda: not any(worker.running for worker in workers))
