"""A driver for `LocalScheduler` with a pretend engine, and what it must come to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from fake_engine import FakeEngine, next_token

from preble.events import CacheEvent, CacheEvents, Evicted
from preble.page_keys import KEY_BYTES, key_sum, pack_tokens, unpack_tokens
from preble.types import FinishReason, RequestOutput, SamplingParams, WorkerRequest
from preble_worker.batch import Batch
from preble_worker.config import SchedulerConfig
from preble_worker.outputs import StepOutputs
from preble_worker.scheduler import LocalScheduler


def expected_tokens(request: WorkerRequest, config: SchedulerConfig) -> list[int]:
    """The whole remaining output of `request`, computed with no scheduler at all."""
    sampling = request.sampling
    stops = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stops |= set(config.eos_token_ids)
    context = unpack_tokens(request.tokens).tolist()
    output: list[int] = []
    for position in range(request.num_delivered, sampling.max_tokens):
        token = next_token(np.array(context), sampling.seed, position)
        output.append(token)
        context.append(token)
        if token in stops:
            break
    return output


def make_config(**options: object) -> SchedulerConfig:
    """Small numbers, so that everything is scarce."""
    defaults: dict[str, object] = {
        "num_pages": 64,
        "page_tokens": 4,
        "max_batch_tokens": 32,
        "max_sequences": 8,
        "context_tokens": 128,
    }
    return SchedulerConfig(**{**defaults, **options})  # type: ignore[arg-type]


def make_request(
    request_id: str,
    prompt: Sequence[int],
    max_tokens: int = 4,
    *,
    seed: int = 0,
    ignore_eos: bool = False,
    stop_token_ids: tuple[int, ...] = (),
    **fields: object,
) -> WorkerRequest:
    """A request from plain token ids."""
    sampling = SamplingParams(
        max_tokens=max_tokens, seed=seed, ignore_eos=ignore_eos, stop_token_ids=stop_token_ids
    )
    return WorkerRequest(
        request_id=request_id,
        tokens=pack_tokens(list(prompt)),
        sampling=sampling,
        **fields,  # type: ignore[arg-type]
    )


@dataclass
class Received:
    """What a router would know of one attempt."""

    next_position: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int | None = None
    error: str = ""


class CacheView:
    """The pages a worker holds, as a set of key paths, from its events alone."""

    def __init__(self, paths: Iterable[bytes] = (), *, seq: int = 0) -> None:
        self.seq = seq
        self.pages: set[bytes] = set()
        for path in paths:
            self._store(path)

    def apply(self, batch: CacheEvents) -> None:
        assert batch.seq == self.seq + 1
        self.seq = batch.seq
        self.follow(batch.events)

    def follow(self, events: Iterable[CacheEvent]) -> None:
        for event in events:
            if isinstance(event, Evicted):
                self._evict(event.path, event.keep)
            else:
                self._store(event.path)

    @property
    def key_sum(self) -> int:
        return key_sum(b"".join(page[-KEY_BYTES:] for page in self.pages))

    def _store(self, path: bytes) -> None:
        assert path and len(path) % KEY_BYTES == 0
        ends = range(KEY_BYTES, len(path) + 1, KEY_BYTES)
        self.pages.update(path[:end] for end in ends)

    def _evict(self, path: bytes, keep: int) -> None:
        first_gone = path[: (keep + 1) * KEY_BYTES]
        assert len(first_gone) == (keep + 1) * KEY_BYTES
        assert path in self.pages
        self.pages = {page for page in self.pages if not page.startswith(first_gone)}


class Worker:
    """A scheduler, a pretend engine, and everything that came out, checked as it comes.

    Each step takes one second unless told otherwise.
    """

    def __init__(self, *, step_seconds: float = 1.0, **options: object) -> None:
        self.config = make_config(**options)
        self.scheduler = LocalScheduler(self.config, epoch=1)
        self.engine = FakeEngine(
            self.config.num_pages, self.config.page_tokens, tiers=self.config.tiers
        )
        self.view = CacheView()
        self.host_view = CacheView()
        self.now = 0.0
        self.step_seconds = step_seconds
        self.requests: dict[tuple[str, int], WorkerRequest] = {}
        self.received: dict[tuple[str, int], Received] = {}
        self.batches: list[Batch] = []

    def add(self, *requests: WorkerRequest) -> None:
        for request in requests:
            key = request.request_id, request.attempt
            self.requests[key] = request
            self.received[key] = Received(request.num_delivered)
            self.scheduler.add(request, now=self.now)

    def submit(self, request_id: str, prompt: Sequence[int], **fields: object) -> None:
        """`add` with `make_request`."""
        self.add(make_request(request_id, prompt, **fields))  # type: ignore[arg-type]

    def step(self) -> Batch | None:
        """One turn of the main loop."""
        batch = self.schedule()
        if batch is None:
            self.take(self.scheduler.flush())
        else:
            self.complete(batch)
        self.check()
        return batch

    def schedule(self) -> Batch | None:
        batch = self.scheduler.schedule(now=self.now)
        if batch is not None:
            assert batch.counts.sum() <= self.config.max_batch_tokens
            self.batches.append(batch)
        return batch

    def complete(self, batch: Batch) -> None:
        tokens = self.engine.run(batch)
        self.now += self.step_seconds
        self.take(self.scheduler.complete(batch, tokens, now=self.now))

    def run(self, *, max_steps: int = 5000) -> None:
        """Step until nothing is live."""
        for _ in range(max_steps):
            if not self.scheduler.num_live:
                self.take(self.scheduler.flush())
                return
            assert self.step() is not None or not self.scheduler.num_live, "stuck with work left"
        raise AssertionError(f"not done after {max_steps} steps")

    def take(self, outputs: StepOutputs) -> None:
        """Receive a step's outputs as a router would."""
        for output in outputs.outputs:
            self._receive(output)
        if outputs.cache is not None:
            self.view.apply(outputs.cache)
            self.host_view.follow(outputs.cache.host_events)
        load = self.scheduler.load()
        assert (load.tree_pages, load.tree_key_sum) == (len(self.view.pages), self.view.key_sum)

    def _receive(self, output: RequestOutput) -> None:
        received = self.received[output.request_id, output.attempt]
        assert received.finish_reason is None, f"{output} came after the end"
        assert output.position == received.next_position, f"{output} lost or repeated a token"
        tokens = unpack_tokens(output.tokens).tolist()
        received.tokens += tokens
        received.next_position += len(tokens)
        received.finish_reason = output.finish_reason
        received.error = output.error
        if received.tokens:
            assert output.cached_tokens is not None
            assert received.cached_tokens in (None, output.cached_tokens)
        received.cached_tokens = output.cached_tokens

    def check_after_flush(self) -> None:
        self.take(self.scheduler.flush())
        self.check()

    def check(self) -> None:
        """The scheduler's invariants, and that its snapshot is what its events said."""
        self.scheduler.check()
        snapshot = self.scheduler.snapshot()
        assert snapshot.seq == self.view.seq
        assert CacheView(snapshot.paths).pages == self.view.pages
        assert CacheView(snapshot.host_paths).pages == self.host_view.pages

    def output(self, request_id: str, attempt: int = 1) -> Received:
        return self.received[request_id, attempt]

    def assert_complete(self) -> None:
        """Every request ended, once, with exactly the tokens that the model alone would draw."""
        for key, request in self.requests.items():
            received = self.received[key]
            expected = expected_tokens(request, self.config)
            assert received.finish_reason in (FinishReason.STOP, FinishReason.LENGTH), key
            assert received.tokens == expected, key
