"""Times single steps as a worker takes them: schedule, run, complete.

Only the steps that are timed are computed. Those that lead up to them are scheduled and completed
with made-up tokens: the scheduler then believes that the keys are there, and how long a step takes
does not depend on their values.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from preble.page_keys import pack_tokens
from preble.types import SamplingParams, WorkerRequest
from preble_loadgen.fit import MeasuredStep
from preble_loadgen.profile_plan import StepShape
from preble_worker.batch import ALL_KV, Batch, num_extra_products
from preble_worker.kv_form import KvForm
from preble_worker.loaded import LoadedEngine
from preble_worker.scheduler import LocalScheduler

LOWEST_TOKEN = 3
"""Ids below are left out: most vocabularies begin with their special tokens."""


class StepBench:
    """Runs steps of given shapes. `clock` returns seconds."""

    def __init__(self, loaded: LoadedEngine, *, clock: Callable[[], float], seed: int = 0) -> None:
        self._engine = loaded.engine
        self._config = replace(loaded.scheduler, policy="fcfs", prefix_caching=True)
        self._vocab_size = loaded.vocab_size
        self._clock = clock
        self._rng = np.random.default_rng(seed)
        self._num_requests = 0

    def measure(self, shape: StepShape, *, num_warm: int, num_timed: int) -> MeasuredStep:
        """The median duration of `num_timed` successive steps of `shape`, after `num_warm`."""
        scheduler = LocalScheduler(self._config, epoch=1)
        cached = [self._prompt(num_cached) for _, num_cached in shape.prefills]
        for prompt in cached:
            self._add(scheduler, prompt, max_tokens=1)
        while scheduler.num_live:
            self._pretend(scheduler)
        for context in shape.decodes:
            self._add(scheduler, self._prompt(context), max_tokens=self._room(context))
        while _is_prefilling(scheduler):
            self._pretend(scheduler)
        steps = []
        for _ in range(num_warm + num_timed):
            for (new, _), prompt in zip(shape.prefills, cached, strict=True):
                self._add(scheduler, prompt + self._prompt(new), max_tokens=1)
            steps.append(self._time(scheduler, shape))
        return _typical(steps[num_warm:])

    def _time(self, scheduler: LocalScheduler, shape: StepShape) -> MeasuredStep:
        begun_at = self._clock()
        batch = scheduler.schedule(now=0.0)
        assert batch is not None
        with _in_form(batch, shape.form) as computed:
            tokens = self._engine.run(computed)
        scheduler.complete(batch, tokens, now=0.0)
        seconds = self._clock() - begun_at
        assert _is_of(batch, shape), "the step is another than planned"
        return MeasuredStep(
            kind=shape.kind,
            prefill_tokens=len(batch.prefill_tokens),
            attention=batch.attention,
            decodes=batch.num_decodes,
            context_tokens=batch.context_tokens,
            seconds=seconds,
            products=num_extra_products(batch),
            hidden_tokens=computed.hidden_tokens,
            int8_tokens=computed.int8_tokens,
        )

    def _pretend(self, scheduler: LocalScheduler) -> None:
        batch = scheduler.schedule(now=0.0)
        if batch is None:
            scheduler.flush()
            return
        drawn = np.full(np.count_nonzero(batch.samples), LOWEST_TOKEN, dtype=np.int64)
        scheduler.complete(batch, drawn, now=0.0)

    def _prompt(self, num_tokens: int) -> bytes:
        drawn = self._rng.integers(LOWEST_TOKEN, self._vocab_size, num_tokens)
        return pack_tokens(drawn.tolist())

    def _room(self, context: int) -> int:
        longest = min(
            self._config.context_tokens, self._config.num_pages * self._config.page_tokens
        )
        return longest - context

    def _add(self, scheduler: LocalScheduler, tokens: bytes, *, max_tokens: int) -> None:
        if not tokens:
            return
        self._num_requests += 1
        request = WorkerRequest(
            request_id=str(self._num_requests),
            tokens=tokens,
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        )
        scheduler.add(request, now=0.0)


def _is_prefilling(scheduler: LocalScheduler) -> bool:
    load = scheduler.load()
    return load.num_waiting > 0 or load.waiting_prefill_tokens > 0


def _is_of(batch: Batch, shape: StepShape) -> bool:
    chunks = zip(batch.counts[batch.num_decodes :], batch.starts[batch.num_decodes :], strict=True)
    return batch.num_decodes == len(shape.decodes) and sorted(
        (int(count), int(start)) for count, start in chunks
    ) == sorted(shape.prefills)


@contextmanager
def _in_form(batch: Batch, form: KvForm) -> Iterator[Batch]:
    """`batch`, its decodes' contexts in `form`.

    The scheduler, which would choose that for reasons of its own, knows nothing of it: the pages
    that it gave for keys and values have room for as many tokens in a compact form and more.
    """
    if form is KvForm.FULL:
        yield batch
        return
    tables, tokens = batch.tables, int(batch.starts[: batch.num_decodes].sum())
    tables.compact_from[batch.slots], tables.forms[batch.slots] = 0, form
    if form is KvForm.HIDDEN:
        yield replace(batch, hidden_tokens=tokens, num_hidden_decodes=batch.num_decodes)
    else:
        yield replace(batch, int8_tokens=tokens, num_int8_decodes=batch.num_decodes)
    tables.compact_from[batch.slots], tables.forms[batch.slots] = ALL_KV, KvForm.FULL


def _typical(steps: Sequence[MeasuredStep]) -> MeasuredStep:
    """Decodes grow by a token per step, so K, H, Q and N are those of the mean step."""
    return replace(
        steps[0],
        products=statistics.fmean(step.products for step in steps),
        context_tokens=statistics.fmean(step.context_tokens for step in steps),
        hidden_tokens=statistics.fmean(step.hidden_tokens for step in steps),
        int8_tokens=statistics.fmean(step.int8_tokens for step in steps),
        seconds=statistics.median(step.seconds for step in steps),
    )
