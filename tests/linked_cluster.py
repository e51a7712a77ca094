"""Router and simulated workers in one process, over real links, and what they must answer."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from router_helpers import collect, num_ready, until

from preble.cost import CostModel
from preble.page_keys import pack_tokens
from preble.types import SamplingParams
from preble_router.config import RouterConfig
from preble_router.dispatch import Dispatcher, Generation, GenerationRequest
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler
from preble_worker.config import SchedulerConfig, WorkerConfig
from preble_worker.loaded import LoadedEngine
from preble_worker.server import WorkerServer
from preble_worker.simulated_engine import SimulatedEngine, simulated_tokens

VOCAB = 1000
SHARED = list(range(100, 400))
COST = CostModel(
    name="test",
    fixed=2e-3,
    per_prefill_token=1e-5,
    per_attention=0.0,
    per_decode=1e-5,
    per_context_token=0.0,
)


def make_worker(
    worker_id: str, *, routers: tuple[str, ...] = (), drain_seconds: float = 30.0
) -> WorkerServer:
    """A worker of 4,096 pages that answers a token every two milliseconds."""
    config = WorkerConfig(
        model="demo",
        model_path=Path(),
        engine="simulated",
        worker_id=worker_id,
        routers=routers,
        drain_seconds=drain_seconds,
    )
    loaded = LoadedEngine(
        engine=SimulatedEngine(COST, VOCAB),
        scheduler=SchedulerConfig(num_pages=4096),
        cost=COST,
        vocab_size=VOCAB,
        name="simulated",
    )
    return WorkerServer(config, loaded)


@asynccontextmanager
async def dispatcher_over(*addresses: str, policy: str = "preble") -> AsyncIterator[Dispatcher]:
    """A fresh router over running workers."""
    config = RouterConfig(model="demo", model_path=Path(), workers=addresses)
    scheduler = GlobalScheduler(make_policy(policy), rng=random.Random(0))
    dispatcher = Dispatcher(config, scheduler)
    dispatcher.open()
    try:
        await until(lambda: num_ready(dispatcher) == len(addresses))
        yield dispatcher
        scheduler.check()
    finally:
        await dispatcher.close()


@asynccontextmanager
async def running(*workers: WorkerServer) -> AsyncIterator[list[str]]:
    """Started workers' addresses."""
    try:
        yield [await worker.start() for worker in workers]
    finally:
        for worker in workers:
            await worker.stop(drain_seconds=0.0)


def request(index: int, max_tokens: int = 60) -> GenerationRequest:
    """One of a family with a shared prefix of 300 tokens."""
    return GenerationRequest(
        request_id=f"q{index}",
        tokens=pack_tokens([*SHARED, *range(500 + index, 540 + index)]),
        sampling=SamplingParams(max_tokens=max_tokens, seed=index, ignore_eos=True),
    )


async def assert_oracle(generation: Generation) -> None:
    """Every token once, in order, and no other."""
    tokens, _ = await collect(generation)
    asked = generation.request
    oracle = simulated_tokens(asked.tokens, asked.sampling.seed, asked.sampling.max_tokens, VOCAB)
    assert tokens == pack_tokens(oracle)
