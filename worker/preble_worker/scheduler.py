"""The worker's scheduler: which tokens to compute in the next step, and whose pages to keep.

    waiting ──start──▶ prefill ──last chunk──▶ decode ──▶ ended
       ▲                  │                      │
       └────preempt───────┴──────────────────────┘

One step has one budget of tokens. Decodes come first with one token each, then the chunks of
prompts in the order in which they started, then new requests in the order of the policy, which
may let some go before prompts that have begun.

A request takes the pages of its whole prompt when it starts, and one more whenever a decode fills
its last. Only the latter can find no page left; then running requests are preempted, newest of the
lowest priority first, until the others fit. The oldest always fits alone, because a request that
could outgrow the pool is refused on arrival: so there is no deadlock.

Priority orders who starts and who is preempted for pages; a request that waits does not push out
one that runs, unless the policy knows a reason (`preble_worker.preemption`).

It does not know models, devices, clocks or wires.
"""

import numpy as np
import numpy.typing as npt

from preble.events import EVERYTHING, CacheSnapshot, SnapshotRequest
from preble.types import FinishReason, LoadReport, WorkerRequest
from preble_worker.batch import Batch, SlotTables
from preble_worker.batch_maker import BatchMaker
from preble_worker.completion import Completion
from preble_worker.config import SchedulerConfig
from preble_worker.deadlines import Deadlines
from preble_worker.decodes import DecodeRows
from preble_worker.host_tier import make_host_tier
from preble_worker.load_report import load_report
from preble_worker.logprobs import NO_LOGPROBS
from preble_worker.outbox import Outbox
from preble_worker.outputs import NO_TOKENS, StepOutputs, TokenColumns
from preble_worker.page_cache import PageCache
from preble_worker.policies import make_policy
from preble_worker.preemption import Preemption, Reviews, least_needed, make_preemption
from preble_worker.prefills import Prefills
from preble_worker.running import Running
from preble_worker.sequence import Sequence, Stage
from preble_worker.slots import Slots
from preble_worker.swap_ahead import make_swap_ahead
from preble_worker.totals import Totals
from preble_worker.waiting import WaitingQueue

RETRY_STEPS = 16
"""While the first in line lacks pages, look for another first one this often."""

__all__ = ["LocalScheduler", "StepOutputs", "TokenColumns"]


class LocalScheduler:
    """Schedules one worker's requests. `schedule` and `complete` alternate; the rest may be
    called at any moment in between, from the same thread.
    """

    def __init__(
        self, config: SchedulerConfig, *, epoch: int, tables: SlotTables | None = None
    ) -> None:
        """
        Raises:
            ConfigError: the policy does not exist.
        """
        policy = make_policy(config.policy, config.policy_options)
        max_pages = -(-config.context_tokens // config.page_tokens)
        self.config = config
        self.tables = tables or SlotTables(config.max_sequences, max_pages)
        self._cache = PageCache(
            config.num_pages, config.page_tokens, epoch=epoch, sharing=config.prefix_caching
        )
        self._deadlines = Deadlines(max_batch_tokens=config.max_batch_tokens)
        self._waiting = WaitingQueue(self._cache, policy, self._deadlines, config)
        self._prefills = Prefills()
        self._decodes = DecodeRows(self.tables, config)
        self._outbox = Outbox(policy)
        self._slots = Slots(self.tables, self._cache, config.tiers)
        self._totals = Totals()
        self.tier_totals = self._totals.tiers
        self._host = make_host_tier(config, self._cache, self._slots, self.tier_totals)
        self._running = Running(self._decodes, self._prefills, self._host, self._totals)
        self._completion = Completion(self._running, self._slots, self._outbox)
        self._batches = BatchMaker(self.tables)
        self._max_running = config.max_running
        self._preemption = make_preemption(
            policy, config, self._waiting, self._running, self._cache, self._slots
        )
        self._ahead = make_swap_ahead(policy, self._host, self._waiting, self._running)

        self._under_way: Batch | None = None
        self._scheduled_at = 0.0
        self._retry_at_step = 0
        self._num_added = 0

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._waiting) + len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to schedule, or to `flush`."""
        return self.num_live > 0 or bool(self._outbox.others) or self._cache.has_events

    # What may happen at any moment.

    def add(self, request: WorkerRequest, *, now: float) -> None:
        """Queue a request; one that can never fit is REFUSED.

        A later attempt replaces a live earlier one of the same id, which ends as CANCELLED; an
        attempt that is not later than a live one is a duplicate and is dropped.
        """
        live = self._outbox.live.get(request.request_id)
        if live is not None and live.end is None:
            if live.attempt >= request.attempt:
                return
            self._stop(live, FinishReason.CANCELLED, now)
        self._num_added += 1
        sequence = Sequence(
            request,
            order=self._num_added,
            arrived_at=now,
            page_bytes=self._cache.page_bytes,
            eos_token_ids=self.config.eos_token_ids,
        )
        if error := sequence.why_never(self.config):
            self._outbox.settle(sequence, FinishReason.REFUSED, error=error)
        elif sequence.num_output >= sequence.sampling.max_tokens:
            self._outbox.settle(sequence, FinishReason.LENGTH)
        else:
            self._outbox.live[sequence.request_id] = sequence
            self._deadlines.add(sequence, num_live=self.num_live)
            self._waiting.add(sequence, now=now)
            self._look_again()

    def cancel(self, request_id: str, *, now: float) -> None:
        """End a request as CANCELLED; without effect if it is not live.

        If it is in the batch under way, it ends when that is complete, without its token.
        """
        sequence = self._outbox.live.get(request_id)
        if sequence is not None:
            self._stop(sequence, FinishReason.CANCELLED, now)

    def flush(self) -> StepOutputs:
        """Outputs and cache events that arose outside of a step."""
        return self._outbox.hand_out(self._cache, NO_TOKENS)

    # The step.

    def schedule(self, *, now: float) -> Batch | None:
        """The next batch, None if there is nothing to compute.

        Requests whose deadline has passed end as DEADLINE.
        """
        assert self._under_way is None, "the previous batch is not complete"
        for sequence in self._deadlines.passed(now=now):
            self._stop(sequence, FinishReason.DEADLINE, now)
        self._slots.free_leaving(now=now)
        if self._host:
            self._running.end_loads(now=now)
        if self._preemption:
            self._make_room(self._preemption, now)
        self._grow_decodes(now)
        budget = self._prompt_tokens()
        if isinstance(self._preemption, Preemption):
            self._overtake(self._preemption, budget, now)
        for sequence in self._prefills.sequences:
            if budget:
                budget -= self._prefills.take(sequence, budget)
        if self._may_start(budget):
            self._start_waiting(budget, now)
        if self._ahead:
            self._ahead.review(now=now)
        if self._host:
            self._running.hurry(budget, now=now)
        if not len(self._running):
            return None
        self._scheduled_at = now
        self._under_way = self._batches.make(self._decodes, self._prefills.chunks, self._slots)
        if self._host:
            self._under_way = self._host.with_moves(self._under_way)
        return self._under_way

    def complete(self, batch: Batch, tokens: npt.NDArray[np.int64], *, now: float) -> StepOutputs:
        """Take in what the engine computed: one token per row with samples, in row order."""
        assert batch is self._under_way and len(tokens) == np.count_nonzero(batch.samples)
        self._under_way = None
        self._totals.busy_seconds += now - self._scheduled_at
        self._deadlines.stepped(now - self._scheduled_at)
        decoded, num_decodes = NO_TOKENS, batch.num_decodes
        logprobs = batch.logprobs.packed() if batch.logprobs else NO_LOGPROBS
        if num_decodes:
            decoded = self._completion.take_decodes(tokens[:num_decodes], logprobs, now)
        if self._prefills.chunks:
            self._completion.take_prefills(
                tokens[num_decodes:], logprobs, now, num_decodes=num_decodes
            )
        self._completion.stopping.clear()
        return self._outbox.hand_out(self._cache, decoded)

    def num_alike(self, batch: Batch) -> int:
        """How many steps in a row, `batch` the first, compute the same requests, if none comes or
        is cancelled. To be asked right after `schedule`. 1 wherever it could be more but is not
        certain; 1 while any request has a deadline.
        """
        assert batch is self._under_way
        if self._prefills.chunks or self._deadlines or self._running.is_copying:
            return 1
        if batch.moves or batch.conversions:
            return 1
        num_alike = self._decodes.steps_until_end(num_available=self._cache.num_at_hand)
        if self._has_room(self.config.max_batch_tokens - len(self._decodes)):
            num_alike = min(num_alike, self._retry_at_step - self._batches.step + 1)
        if self._preemption and (len(self._waiting) or batch.num_hidden_decodes):
            until_review = self._preemption.review_at_step - self._batches.step + 1
            num_alike = min(num_alike, until_review)
        return max(num_alike, 1)

    def repeat(self, batch: Batch, tokens: npt.NDArray[np.int64]) -> None:
        """As if `batch` were completed with each line of `tokens`, and scheduled again each time:
        the last of those many batches, less than `num_alike`, is then under way as `batch`.
        """
        assert batch is self._under_way and not self._completion.stopping
        self._decodes.advance_many(tokens, self._cache.allocate)
        self._batches.step += len(tokens)

    def fail(self, batch: Batch, *, error: str, now: float) -> StepOutputs:
        """The engine failed: the requests of `batch` end as ERROR, nothing of it is shared."""
        assert batch is self._under_way
        self._under_way = None
        self._completion.stopping.clear()
        self._totals.busy_seconds += now - self._scheduled_at
        for sequence in [*self._decodes.sequences, *self._prefills.chunks]:
            sequence.chunk = 0
            self._take_out(sequence, now, share=False)
            self._outbox.settle(sequence, sequence.end or FinishReason.ERROR, error=error)
        self._prefills.chunks.clear()
        if self._host:
            self._forget_copies(now)
        return self._outbox.hand_out(self._cache, NO_TOKENS)

    # What it says of itself.

    def load(self) -> LoadReport:
        """How busy the worker is; the tree's digest is that of the last events handed out."""
        digest = self._outbox.digest
        return load_report(self._waiting, self._running, self._cache, self._totals, digest=digest)

    def snapshot(self, request: SnapshotRequest = EVERYTHING) -> CacheSnapshot:
        """What the cache holds. Call `flush` first if there may be events not handed out."""
        return self._cache.snapshot(request)

    # Inside a step.

    def _grow_decodes(self, now: float) -> None:
        """See to it that every decode has a page for its next token, by preemption if need be."""
        short = self._decodes.short_of_pages()
        while len(short) > self._cache.num_available:
            if not self._running.give_back(now=now):
                self._preempt(least_needed(self._running, self._preemption, now=now), now)
            short = self._decodes.short_of_pages()
        if len(short):
            self._decodes.give_pages(short, self._cache.allocate(len(short)))

    def _make_room(self, preemption: Reviews, now: float) -> None:
        """Take out whom the policy would rather see wait than others."""
        for sequence in preemption.review(step=self._batches.step, now=now):
            self._preempt(sequence, now)
            self._retry_at_step = 0

    def _overtake(self, preemption: Preemption, budget: int, now: float) -> None:
        """Start those whose prompts are computed before others that have begun."""
        step = self._batches.step
        for sequence, behind in preemption.overtaking(budget, step=step, now=now):
            if not self._start(sequence, now):
                return
            if sequence.stage is Stage.PREFILL:
                self._prefills.move_before(sequence, behind)

    def _look_again(self) -> None:
        """Who waits is not the same: what was found out about them is void."""
        self._retry_at_step = 0
        if self._preemption:
            self._preemption.review_at_step = 0

    def _preempt(self, sequence: Sequence, now: float) -> None:
        self._running.preempt(sequence, now=now)
        self._slots.release(sequence, share=True, now=now)
        sequence.requeue()
        self._waiting.add(sequence, now=now)
        self._totals.preemptions += 1

    def _forget_copies(self, now: float) -> None:
        """The engine failed: nothing that it may have copied counts."""
        assert self._host is not None
        for sequence in self._running.loading:
            self._take_out(sequence, now, share=False)
            sequence.requeue()
            self._waiting.add(sequence, now=now)
        self._host.forget(now=now)

    def _prompt_tokens(self) -> int:
        """What the decodes leave of the step's budget, or what the policy wants of that."""
        left = self.config.max_batch_tokens - len(self._decodes)
        return min(left, self._preemption.prompt_tokens) if self._preemption else left

    def _has_room(self, budget: int) -> bool:
        """Whether somebody waits, and only pages could be lacking."""
        return budget > 0 and len(self._waiting) > 0 and len(self._running) < self._max_running

    def _may_start(self, budget: int) -> bool:
        """Whether looking at the queue can come to anything."""
        return self._has_room(budget) and (
            len(self._running) == 0
            or self._cache.num_available >= self._slots.wanted_pages
            or self._batches.step >= self._retry_at_step
        )

    def _start_waiting(self, budget: int, now: float) -> None:
        """Start requests in their turn, until one does not fit; nobody overtakes that one."""
        num_running = len(self._running)
        for sequence in self._waiting.in_turn(now=now):
            if not budget or num_running >= self._max_running:
                return
            self._waiting.refresh(sequence)
            if self._running.should_follow(sequence, step=self._batches.step):
                continue
            if not self._start(sequence, now):
                self._retry_at_step = self._batches.step + RETRY_STEPS
                return
            num_running += 1
            if sequence.stage is Stage.PREFILL:
                budget -= self._prefills.take(sequence, budget)

    def _start(self, sequence: Sequence, now: float) -> bool:
        """Let `sequence` run; False if there are too few pages."""
        # A page for the growth of each that runs, lest it is preempted in the next step.
        while not self._slots.occupy(sequence, spare=len(self._running), now=now):
            if not self._running.give_back(besides=sequence, now=now):
                return False
            self._waiting.refresh(sequence)
        self._waiting.start(sequence, now=now)
        self._running.enter(sequence, now=now)
        return True

    # Ends.

    def _stop(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        """End a live request now, or when the batch under way with it is complete."""
        if sequence.end is not None:
            return
        if self._under_way and (sequence.stage is Stage.DECODE or sequence.chunk):
            sequence.end = reason
            self._completion.stopping.append(sequence)
            return
        self._take_out(sequence, now, share=True)
        self._outbox.settle(sequence, reason)

    def _take_out(self, sequence: Sequence, now: float, *, share: bool) -> None:
        """Remove a request from wherever it is, and its pages with it."""
        if sequence.stage is Stage.WAITING:
            self._waiting.remove(sequence)
            self._running.wait_no_more(sequence, now=now)
            self._look_again()
            return
        self._running.leave(sequence, now=now)
        self._slots.release(sequence, share=share, now=now)

    def check(self) -> None:
        """Assert every invariant; cost grows with the cache, for tests."""
        running = list(self._running)
        waiting = list(self._waiting)
        self._running.check()
        self._waiting.check()
        self._slots.check(running, waiting)
        self._outbox.check([*running, *waiting])
        assert len(running) <= self._max_running
        assert self._under_way is not None or not (
            self._completion.stopping or self._prefills.chunks
        )
