"""Every attempt at every live request: placed, broken off, placed again, settled once.

    place -> attempt 1 ... breaks off -> place -> attempt 2 ... -> settle
                              \\-> nobody can take it: waits a bounded time -/

An attempt breaks off when its link dies or goes silent, or when the worker turns it away. The next
one is sent prompt and delivered output, so that the client's stream goes on where it was.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable

from preble.errors import (
    DeadlineExceeded,
    NoWorkers,
    PrebleError,
)
from preble.page_keys import namespace_seed, num_tokens, page_keys
from preble.types import FinishReason, WorkerRequest
from preble_router.config import RouterConfig
from preble_router.generation import Generation
from preble_router.lengths.forecasts import LengthForecasts
from preble_router.lengths.predictor import Prompt
from preble_router.loop_turn import Slices
from preble_router.membership import Membership
from preble_router.request_ends import poisoned, worker_gone
from preble_router.retry_budget import RetryBudget
from preble_router.scheduler import GlobalScheduler
from preble_router.session import Session
from preble_router.stimuli import RequestFailed, RequestFinished, RouteRequest
from preble_router.suspects import Suspects

MOVES_PER_TURN = 16
"""Requests placed again in one turn of the event loop: a few milliseconds of it."""
MOVED_TOKENS = 4096
"""So many tokens of a prompt take as long again as what any request takes."""


class Attempts:
    """Owns the live requests, and books their attempts in the `GlobalScheduler`.

    Attributes:
        live: requests accepted and not ended, by id. idle: set while there are none.
        outcomes: ended requests by finish reason or error code, since the start.
        forecasts: of output lengths.
        placements: attempts by the kind of the policy's reason.
        retries_total: attempts after the first. budget: of those after the second.
        suspects: of bringing workers down.
    """

    def __init__(
        self,
        config: RouterConfig,
        scheduler: GlobalScheduler,
        membership: Membership,
        *,
        forecasts: LengthForecasts,
        takeover_seconds: float,
        clock: Callable[[], float],
        moves_per_turn: int,
    ) -> None:
        self.forecasts = forecasts
        self.live: dict[str, Generation] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self.outcomes: Counter[str] = Counter()
        self.placements: Counter[str] = Counter()
        self.retries_total = 0
        self.suspects = Suspects(membership.sessions)
        self.budget = RetryBudget()
        self._config = config
        self._scheduler = scheduler
        self._membership = membership
        self._takeover_seconds = takeover_seconds
        self._clock = clock
        self._give_up_at: dict[str, float] = {}  # of live requests that need another worker
        self._moves = Slices(moves_per_turn, go_on=lambda: self.retry_waiting(clock()))

    def start(self, generation: Generation, now: float) -> None:
        """The first attempt of a new request. Raises `NoWorkers`, `PoisonedRequest`."""
        if self.suspects.is_poisoned(generation, now):
            raise poisoned()
        self.place(generation, now)
        self.live[generation.request_id] = generation
        self.budget.count_request(now=now)
        self.idle.clear()

    def place(self, generation: Generation, now: float) -> None:
        """Books and submits the next attempt; changes nothing when it raises `NoWorkers`, or, at
        the first attempt, `Overloaded`."""
        request = generation.request
        tokens = request.tokens + bytes(generation.output)
        num_delivered = generation.num_output_tokens
        keys = self.page_keys(tokens, request.namespace)
        if generation.prompt is None:
            self._predict(generation, keys)
        placement = self._scheduler.place(
            RouteRequest(
                request_id=request.request_id,
                page_keys=keys,
                num_tokens=num_tokens(tokens),
                max_tokens=request.sampling.max_tokens - num_delivered,
                attempt=generation.attempt + 1,
                namespace=request.namespace,
                tenant=request.tenant,
                priority=request.priority,
                start_by=self._config.start_by(now=now),
                deadline_at=request.deadline_at,
                predicted_output_tokens=_remaining(generation),
                excluded=self._excluded(generation, now),
            ),
            now=now,
        )
        self.placements[_kind(placement.reason)] += 1
        session = self._membership.sessions[placement.worker_id]
        generation.place(placement, session, now=now)
        if generation.predicted_output_tokens is None:
            generation.predicted_output_tokens = max(1, round(placement.predicted_output_tokens))
        self.suspects.placed(generation, session, now)
        session.submit(
            WorkerRequest(
                request_id=request.request_id,
                tokens=tokens,
                sampling=request.sampling,
                attempt=placement.attempt,
                num_delivered=num_delivered,
                namespace=request.namespace,
                priority=request.priority,
                deadline_at=request.deadline_at,
                predicted_output_tokens=generation.predicted_output_tokens,
                ttft_slo_seconds=request.ttft_slo_seconds,
                tbt_slo_seconds=request.tbt_slo_seconds,
                tenant=request.tenant,
            ),
            now=now,
        )

    def _predict(self, generation: Generation, page_keys: bytes) -> None:
        """Once per request, before its first attempt."""
        request = generation.request
        generation.prompt = Prompt(
            tokens=request.tokens,
            page_keys=page_keys,
            tenant=request.tenant,
            max_tokens=request.sampling.max_tokens,
            embedding=request.embedding,
        )
        generation.predicted_output_tokens = self.forecasts.predict(generation.prompt)

    def _learn(self, generation: Generation) -> None:
        """It has all the output it was to have: how long it became is worth knowing."""
        if generation.prompt is not None and generation.predicted_output_tokens is not None:
            self.forecasts.finished(
                generation.prompt,
                predicted=generation.predicted_output_tokens,
                output_tokens=generation.num_output_tokens,
            )

    def _excluded(self, generation: Generation, now: float) -> frozenset[str]:
        """Workers that failed it and have not come back since, those too small for it, and those
        that may not take it for what it is suspected of."""
        sessions = self._membership.sessions
        excluded = {
            worker_id
            for worker_id, serial in generation.failed
            if worker_id in sessions and sessions[worker_id].serial == serial
        }
        if self._membership.limits_differ:
            needed = generation.request.needed_tokens
            excluded.update(
                session.worker_id
                for session in sessions.values()
                if session.request_limit_tokens < needed
            )
        excluded |= self.suspects.barred(generation, excluded, now)
        return frozenset(excluded)

    def end_trial(self, session: Session, now: float) -> None:
        """A suspect has shown a token: the next one may come."""
        self.suspects.end_trial(session, now)
        self.retry_waiting(now)

    def break_off(self, generation: Generation, now: float, *, fault: bool = True) -> None:
        """The attempt is over without an end of the request: take it off the books.

        Args:
            fault: it counts as one of the request's `max_attempts`.
        """
        session = generation.session
        assert session is not None
        if fault:
            self.suspects.broke_off(generation, now)
        generation.num_failures += fault
        generation.failed.add((session.worker_id, session.serial))
        generation.unplace()
        self._scheduler.observe(RequestFailed(generation.request_id, generation.attempt), now=now)

    def turn_away(
        self,
        generation: Generation,
        now: float,
        *,
        error: PrebleError | None = None,
        wait: bool = True,
        fault: bool = True,
    ) -> None:
        """This worker will not finish it: on to another, or its end."""
        self.break_off(generation, now, fault=fault)
        self.go_on(generation, now, error=error, wait=wait)

    def go_on(
        self,
        generation: Generation,
        now: float,
        *,
        error: PrebleError | None = None,
        wait: bool = True,
    ) -> None:
        """Places a broken-off request again, or ends it where that may not be. After many others in
        this turn of the event loop it has its turn in a later one.

        Args:
            error: what the worker said, and the client is told at such an end.
            wait: for a worker, where none can take it now, as long as in an outage.
        """
        if self.suspects.is_poisoned(generation, now):
            self.settle(generation, error or poisoned())
            return
        num_failures = generation.num_failures
        if num_failures >= self._config.max_attempts or not self.budget.allows(
            num_failures=num_failures, now=now
        ):
            self.settle(generation, error or worker_gone(generation))
            return
        if wait and (self.suspects.must_wait(generation, now) or not self._moves.may_begin()):
            self._wait(generation, now)
            return
        try:
            self.place(generation, now)
        except NoWorkers:
            if not (wait or self._is_held_back(generation, now)):
                self.settle(generation, error or worker_gone(generation))
                return
            self._wait(generation, now)
        else:
            self._moves.done(1.0 + num_tokens(generation.request.tokens) / MOVED_TOKENS)
            self.retries_total += 1
            self.budget.count_retry(num_failures=num_failures, now=now)
            self._give_up_at.pop(generation.request_id, None)

    def _wait(self, generation: Generation, now: float) -> None:
        """For a worker that can take it, or for its turn."""
        self._give_up_at.setdefault(generation.request_id, now + self._takeover_seconds)

    def _is_held_back(self, generation: Generation, now: float) -> bool:
        """Whether only other suspects stand between it and a worker."""
        until = generation.suspected_until
        return until > now and self._has_open_worker(generation, until)  # as it will be then

    def _has_open_worker(self, generation: Generation, now: float, *, other_than: str = "") -> bool:
        """Whether a ready worker could run it; cheaper than to try."""
        excluded = self._excluded(generation, now) | {other_than}
        return generation.num_failures < self._config.max_attempts and any(
            session.ready and not session.liveness.suspect and session.worker_id not in excluded
            for session in self._membership.sessions.values()
        )

    def leave(self, generations: Iterable[Generation], now: float) -> None:
        """Moves requests off a silent worker, or lets them wait there for whoever speaks first."""
        for generation in generations:
            self._wait(generation, now)
        self.retry_waiting(now)

    def leave_draining(self, generation: Generation, now: float) -> None:
        """Moves a request off a worker that is about to end, if there is an elsewhere."""
        if self._has_open_worker(generation, now):
            self.cancel_attempt(generation)
            self.turn_away(generation, now, fault=False)

    def stay(self, session: Session) -> None:
        """A silent worker speaks again: what waited on it goes on there."""
        for request_id in session.live:
            self._give_up_at.pop(request_id, None)

    def retry_waiting(self, now: float) -> None:
        """Looks again for workers that take over, and gives up where the time has passed."""
        for request_id, give_up_at in list(self._give_up_at.items()):
            generation = self.live[request_id]
            if self._can_move(generation, now):
                if not self._moves.may_begin():
                    return
                if generation.session is not None:
                    self.cancel_attempt(generation)
                    self.break_off(generation, now)
                self.go_on(generation, now)
            if request_id in self._give_up_at and now >= give_up_at:
                self.cancel_attempt(generation)
                self.settle(generation, worker_gone(generation))

    def _can_move(self, generation: Generation, now: float) -> bool:
        """Whether somebody could take over who waits, perhaps on a worker that is silent."""
        if self.suspects.must_wait(generation, now):
            return False
        here = "" if generation.session is None else generation.worker_id
        return self._has_open_worker(generation, now, other_than=here)

    def settle(self, generation: Generation, end: FinishReason | PrebleError) -> None:
        """The one end of a request: off the books, out of every table, told to its consumer."""
        del self.live[generation.request_id]
        self._give_up_at.pop(generation.request_id, None)
        if generation.session is not None:
            output_tokens = generation.attempt_output_tokens
            generation.unplace()
            ended_well = isinstance(end, FinishReason | DeadlineExceeded)
            self._scheduler.observe(
                RequestFinished(generation.request_id, generation.attempt, output_tokens)
                if ended_well
                else RequestFailed(generation.request_id, generation.attempt),
                now=self._clock(),
            )
        if generation.is_complete or end in (FinishReason.STOP, FinishReason.LENGTH):
            self._learn(generation)
            self.suspects.ended_well(generation)
        self.outcomes[end.value if isinstance(end, FinishReason) else end.code] += 1
        generation.end(end)
        if not self.live:
            self.idle.set()

    def cancel_attempt(self, generation: Generation) -> None:
        """Tells the worker, if one has it, to stop."""
        if generation.session is not None:
            generation.session.cancel(generation.request_id, attempt=generation.attempt)

    def page_keys(self, tokens: bytes, namespace: str) -> bytes:
        """The key path of a prompt."""
        return page_keys(
            tokens, page_tokens=self._config.page_tokens, seed=namespace_seed(namespace)
        )


def _remaining(generation: Generation) -> int | None:
    """What is left of the predicted output, at least one token; None before it was predicted."""
    predicted = generation.predicted_output_tokens
    return None if predicted is None else max(1, predicted - generation.num_output_tokens)


def _kind(reason: str) -> str:
    """A policy's reason without what differs from request to request: "exploit: 480 of 512 tokens
    cached" is an "exploit"."""
    return re.split(r"[:\d]", reason, maxsplit=1)[0].strip()
