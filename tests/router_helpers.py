"""Dispatchers over fake workers, and what every test of them wants to say."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fake_worker import MODEL, FakeWorker, fake_tokens

from preble.page_keys import pack_tokens
from preble.types import FinishReason, SamplingParams
from preble_router.config import RouterConfig
from preble_router.dispatch import Delta, Dispatcher, Generation, GenerationRequest
from preble_router.lengths.forecasts import LengthForecasts
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.server import RouterServer

PROMPT = pack_tokens(list(range(100)))


def router_config(**options: Any) -> RouterConfig:
    """For fake workers."""
    values: dict[str, Any] = {
        "model": MODEL,
        "model_path": Path(),
        "router_id": "r0",
    }
    return RouterConfig(**values | options)


@asynccontextmanager
async def cluster(
    *workers: FakeWorker,
    takeover_seconds: float = 5.0,
    forecasts: LengthForecasts | None = None,
    **options: Any,
) -> AsyncIterator[Dispatcher]:
    """A dispatcher linked to `workers`; afterwards its books are empty and its tasks gone."""
    before = asyncio.all_tasks()
    config = router_config(**options)
    scheduler = GlobalScheduler(make_policy("round_robin"), rng=random.Random(1))
    dispatcher = Dispatcher(
        config, scheduler, forecasts=forecasts, takeover_seconds=takeover_seconds
    )
    dispatcher.open()
    try:
        for count, worker in enumerate(workers, start=1):  # One by one: their order is fixed.
            dispatcher.membership.add(worker.address or await worker.start(), static=True)
            await until(lambda count=count: num_ready(dispatcher) == count)
        yield dispatcher
        scheduler.check()
    finally:
        await dispatcher.close()
        for worker in workers:
            await worker.stop()
    assert dispatcher.num_live == 0
    assert sum(worker.live_requests for worker in scheduler.workers()) == 0
    await until(lambda: not left_over(before))


@asynccontextmanager
async def router(
    *workers: FakeWorker, model_path: Path, **options: Any
) -> AsyncIterator[RouterServer]:
    """A whole router on free ports over `workers`; afterwards its tasks are gone."""
    before = asyncio.all_tasks()
    addresses = tuple([worker.address or await worker.start() for worker in workers])
    server = RouterServer(
        router_config(model_path=model_path, workers=addresses, port=0, grpc_port=0, **options)
    )
    await server.start()
    try:
        await until(lambda: num_ready(server.dispatcher) == len(workers))
        yield server
    finally:
        await server.stop()
        for worker in workers:
            await worker.stop()
    await until(lambda: not left_over(before))


def left_over(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Tasks that are still there and were not before."""
    return {task for task in asyncio.all_tasks() - before if not task.done()}


def num_ready(dispatcher: Dispatcher) -> int:
    """Workers that would be sent requests, their caches known."""
    return sum(worker.state == "ready" for worker in dispatcher.status().workers)


async def until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Waits for something that must come; the limit is for broken code only."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is no event
            await asyncio.sleep(0.005)


def generation_request(
    request_id: str = "q0",
    *,
    tokens: bytes = PROMPT,
    max_tokens: int = 20,
    seed: int = 0,
    **options: Any,
) -> GenerationRequest:
    """A request; its expected output is `expected(request)`."""
    sampling = SamplingParams(max_tokens=max_tokens, seed=seed)
    return GenerationRequest(request_id=request_id, tokens=tokens, sampling=sampling, **options)


def expected(request: GenerationRequest) -> bytes:
    """What an undisturbed worker would answer."""
    sampling = request.sampling
    return fake_tokens(request.tokens, sampling.max_tokens, seed=sampling.seed)


async def collect(generation: Generation) -> tuple[bytes, list[Delta]]:
    """All tokens, and the deltas they came in; the last and only the last has a finish reason."""
    deltas = [delta async for delta in generation]
    assert [d.finish_reason is not None for d in deltas] == [False] * (len(deltas) - 1) + [True]
    return b"".join(delta.tokens for delta in deltas), deltas


async def assert_exact(generation: Generation) -> list[Delta]:
    """The generation ends at its length with exactly the tokens of an undisturbed worker."""
    tokens, deltas = await collect(generation)
    assert tokens == expected(generation.request)
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    return deltas


async def midway(
    dispatcher: Dispatcher, *ids: str, max_tokens: int = 60, **options: Any
) -> list[asyncio.Task[Any]]:
    """Requests that have some output and are being checked to their exact end."""
    generations = [
        dispatcher.start(generation_request(i, max_tokens=max_tokens, **options)) for i in ids
    ]
    tasks = [asyncio.create_task(assert_exact(generation)) for generation in generations]
    await until(lambda: all(g.num_output_tokens >= 3 or g.done for g in generations))
    return tasks
