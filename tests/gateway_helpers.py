"""A small tokenizer, a dispatcher that plays scripts, and a gateway over both on a real socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from pretend_logprobs import pretend_logprobs
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, trainers

from preble.cost import CostModel
from preble.errors import Overloaded, PrebleError
from preble.page_keys import pack_tokens
from preble.types import FinishReason, LoadReport, WorkerSpec, WorkerState
from preble_router.config import RouterConfig
from preble_router.gateway import make_app
from preble_router.generation import Generation, GenerationRequest
from preble_router.metrics import Metrics
from preble_router.status import ClusterStatus, TreeStatus, WorkerStatus
from preble_router.tokenizer import Tokenizer

MODEL = "demo"
CONTEXT_TOKENS = 2048
EOS = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def byte_level_core() -> Core:
    """A byte-level BPE vocabulary of a few hundred tokens. Shared: do not change it."""
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(["The quick brown fox jumps over the lazy dog. " * 3], trainer)
    return core


def chat_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    core = byte_level_core()
    return Tokenizer(
        core,
        chat_template=template,
        special_tokens={"eos_token": EOS},
        eos_token_ids=[core.token_to_id(EOS)],
    )


@dataclass
class Script:
    """What a worker would answer: packed tokens per step, then the end. None: it hangs."""

    steps: list[bytes]
    end: FinishReason | PrebleError | None = FinishReason.LENGTH
    cached_tokens: int = 16
    step_seconds: float = 0.0


def spoken(text: str, end: FinishReason | PrebleError | None = FinishReason.LENGTH) -> Script:
    """One step per token of `text`; with STOP an end token follows."""
    core = byte_level_core()
    ids = core.encode(text).ids + ([core.token_to_id(EOS)] if end is FinishReason.STOP else [])
    return Script([pack_tokens([i]) for i in ids], end)


@dataclass
class FakeDispatcher:
    """As `preble_router.dispatch.Dispatcher`, as far as the gateway looks."""

    script: Callable[[GenerationRequest], Script] = lambda request: spoken("Hello, world!")
    refusal: PrebleError | None = None
    early_refusal: PrebleError | None = None
    has_time: bool = True
    is_ready: bool = True
    context_tokens: int | None = CONTEXT_TOKENS
    asked_deadlines: list[float | None] = field(default_factory=list)
    asked_rooms: list[int] = field(default_factory=list)
    requests: list[GenerationRequest] = field(default_factory=list)
    live: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)

    def start(self, request: GenerationRequest) -> Generation:
        if self.refusal is not None:
            raise self.refusal
        assert request.request_id not in self.live
        self.requests.append(request)
        generation = Generation(request, cancel=self._cancel)
        generation.worker_id = "w0"
        generation.predicted_cached_tokens = 48
        playing = asyncio.create_task(self._play(generation, self.script(request)))
        self.live[request.request_id] = playing
        return generation

    def check_turn(self, timeout_seconds: float) -> None:
        if not self.has_time:
            raise Overloaded("no time")

    def check_admission(
        self,
        *,
        num_requests: int = 1,
        deadline_at: float | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> None:
        self.asked_rooms.append(num_requests)
        self.asked_deadlines.append(deadline_at)
        if self.early_refusal is not None:
            raise self.early_refusal

    async def _play(self, generation: Generation, script: Script) -> None:
        # The end comes in the same turn as the last tokens, as it does in a worker's step.
        for tokens in script.steps or [b""]:
            await asyncio.sleep(script.step_seconds)
            if tokens:
                num_top = generation.request.sampling.top_logprobs
                logprobs = None
                if num_top is not None:
                    start = generation.num_output_tokens
                    logprobs = pretend_logprobs(tokens, num_top, start=start, vocab_size=293)
                generation.feed(tokens, script.cached_tokens, logprobs)
        if script.end is None:
            await asyncio.Event().wait()
        del self.live[generation.request_id]
        generation.end(script.end)

    def _cancel(self, generation: Generation) -> None:
        self.live.pop(generation.request_id).cancel()
        self.cancelled.append(generation.request_id)
        generation.end(FinishReason.CANCELLED)

    @property
    def num_live(self) -> int:
        return len(self.live)

    def status(self) -> ClusterStatus:
        cost = CostModel(
            name="test",
            fixed=1e-3,
            per_prefill_token=1e-5,
            per_attention=0.0,
            per_decode=1e-4,
            per_context_token=0.0,
        )
        spec = WorkerSpec(
            worker_id="w0",
            epoch=7,
            model=MODEL,
            page_tokens=16,
            capacity_tokens=4096,
            max_batch_tokens=512,
            max_sequences=16,
            context_tokens=CONTEXT_TOKENS,
            vocab_size=500,
            cost=cost,
        )
        linked = WorkerStatus(
            address="127.0.0.1:9001",
            worker_id="w0",
            state=WorkerState.READY,
            spec=spec,
            load=LoadReport(num_running=3, used_pages=20),
            live_requests=self.num_live,
            held_pages=40,
            placed_requests_total=len(self.requests),
        )
        unlinked = WorkerStatus(
            address="127.0.0.1:9002", worker_id="", state=WorkerState.UNREACHABLE
        )
        return ClusterStatus(
            router_id="router",
            version="0",
            model=MODEL,
            policy="preble",
            workers=(unlinked, linked),
            tree=TreeStatus(nodes=5, pages=40, held_pages=40),
            live_requests=self.num_live,
            uptime_seconds=1.5,
            placements={"exploit": 7},
        )


def make_config(**options: Any) -> RouterConfig:
    return RouterConfig(model=MODEL, model_path=Path("unused"), **options)


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The URL under which uvicorn serves `app` in this event loop."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@dataclass
class Served:
    """A gateway on a socket, its dispatcher, and a client to it."""

    dispatcher: FakeDispatcher
    metrics: Metrics
    url: str
    http: httpx.AsyncClient

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.http.post(path, json=body, **options)


@asynccontextmanager
async def gateway(
    dispatcher: FakeDispatcher | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """A gateway on a socket. After it no request may be live: each must have been settled."""
    dispatcher = dispatcher or FakeDispatcher()
    metrics = Metrics()
    app = make_app(dispatcher, tokenizer or chat_tokenizer(), make_config(**options), metrics)
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=10) as http:
        yield Served(dispatcher, metrics, url, http)
        await until(lambda: not dispatcher.live)


async def until(happened: Callable[[], bool]) -> None:
    """Waits for it; a test that waits in vain runs into its timeout."""
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 (what is awaited has no event)
            await asyncio.sleep(0.005)


def packed(ids: Iterable[int]) -> bytes:
    return pack_tokens(list(ids))
