"""Tokens in, tokens out: accepts requests, and turns what workers say into output and books.

What happens to a request when its worker fails is in `attempts`, which workers there are in
`membership`, where a request goes in `scheduler`.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from time import monotonic

from preble.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NoWorkers,
    Overloaded,
    PrebleError,
    SlowReader,
    WorkerFailed,
)
from preble.events import CacheSnapshot
from preble.page_keys import num_tokens
from preble.types import FinishReason
from preble.v1 import worker_pb2 as pb
from preble_router.attempts import MOVES_PER_TURN, Attempts
from preble_router.config import RouterConfig
from preble_router.dial import Dial, grpc_dial
from preble_router.generation import Delta, Generation, GenerationRequest
from preble_router.lengths.forecasts import LengthForecasts
from preble_router.lengths.predictor import Prompt
from preble_router.loop_turn import LoopTurn
from preble_router.membership import Membership
from preble_router.request_ends import too_long
from preble_router.scheduler import GlobalScheduler
from preble_router.session import Session
from preble_router.slow_readers import SlowReaders
from preble_router.status import ClusterStatus, cluster_status
from preble_router.steps import Steps
from preble_router.stimuli import (
    Explanation,
    RouteRequest,
    SnapshotReceived,
    WorkerJoined,
    WorkerLost,
    WorkerSuspended,
)

__all__ = ["Delta", "Dispatcher", "Generation", "GenerationRequest"]

_log = logging.getLogger(__name__)

TAKEOVER_SECONDS = 5.0
"""How long a request that lost its worker waits for one that can take it over."""
TICK_SECONDS = 0.05


class Dispatcher:
    """Owns the scheduler's books, the workers' links and every live request.

    Make it in the event loop that it shall live in; all methods belong to that loop's thread.

    Args:
        moves_per_turn: requests placed again in one turn of the event loop.
        clock: seconds; deadlines of requests are on it. It keeps pace with the event loop's time.
        dial: how links reach workers; None for gRPC as the configuration says.
    """

    def __init__(
        self,
        config: RouterConfig,
        scheduler: GlobalScheduler,
        *,
        rng: random.Random | None = None,
        forecasts: LengthForecasts | None = None,
        takeover_seconds: float = TAKEOVER_SECONDS,
        moves_per_turn: int = MOVES_PER_TURN,
        clock: Callable[[], float] = monotonic,
        dial: Dial | None = None,
    ) -> None:
        self.config = config
        self.scheduler = scheduler
        self._clock = clock
        self.membership = Membership(
            config,
            self,
            rng=rng or random.Random(),
            clock=clock,
            dial=dial or grpc_dial(token=config.worker_token, ca=config.worker_ca),
        )
        self.attempts = Attempts(
            config,
            scheduler,
            self.membership,
            forecasts=forecasts or LengthForecasts(),
            takeover_seconds=takeover_seconds,
            moves_per_turn=moves_per_turn,
            clock=clock,
        )
        self._steps = Steps(config, scheduler, self.membership, self.attempts)
        self._slow_readers = SlowReaders(config.slow_reader_seconds)
        self._turn = LoopTurn()
        self._accepting = True
        self._opened_at = self._clock()
        self._ticking: asyncio.Task[None] | None = None

    # Life

    def open(self) -> None:
        """Links to the configured workers."""
        self._ticking = asyncio.create_task(self._tick_forever(), name="dispatcher tick")
        for address in self.config.workers:
            self.membership.add(address, static=True)

    async def drain(self, seconds: float) -> None:
        """Accept nothing more; returns when no request is left, or after `seconds`."""
        self._accepting = False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.attempts.idle.wait()

    async def close(self) -> None:
        """Ends every request and every link; nothing of it is left running."""
        self._accepting = False
        for generation in list(self.attempts.live.values()):
            self._end(generation, WorkerFailed("the router stops"))
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        await self.membership.close()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self._tick(self._clock())
            except Exception:
                _log.exception("a tick of the dispatcher failed")

    def _tick(self, now: float) -> None:
        self.membership.check()
        self.attempts.retry_waiting(now)
        for generation in self._slow_readers.find(self.attempts.live.values(), now=now):
            seconds = f"{self.config.slow_reader_seconds:g} s"
            self._end(generation, SlowReader(f"the stream was not read for {seconds}"))
        wakeup = self.scheduler.next_wakeup()
        if wakeup is None or wakeup > now:
            return
        for action in self.scheduler.tick(now=now):
            session = self.membership.sessions.get(action.worker_id)
            if session is not None:
                session.request_snapshot(action.request)

    # Requests

    @property
    def num_live(self) -> int:
        """Requests accepted and not ended."""
        return len(self.attempts.live)

    @property
    def is_ready(self) -> bool:
        """Whether a request that starts now would find a worker."""
        return self._accepting and self.context_tokens is not None

    @property
    def context_tokens(self) -> int | None:
        """Longest prompt plus output that some ready worker can run; None without one."""
        return self.membership.request_limit_tokens

    def start(self, request: GenerationRequest) -> Generation:
        """Places the request at once.

        Raises:
            InvalidRequest: no tokens, or a live request has the same id.
            Overloaded: `max_live_requests` are live, or it would not be done in time.
            NoWorkers: none is ready.
            PromptTooLong: no ready worker can hold prompt and output.
            DeadlineExceeded: the deadline has passed already.
            PoisonedRequest: workers failed each time such a request ran on them.
        """
        now = self._clock()
        deadline_at = self.config.deadline(request.deadline_at, now=now)
        if deadline_at != request.deadline_at:
            request = replace(request, deadline_at=deadline_at)
        self._check(request, now)
        generation = Generation(request, cancel=self._cancel)
        self.attempts.start(generation, now)
        if request.deadline_at is not None:
            generation.deadline_timer = asyncio.get_running_loop().call_later(
                request.deadline_at - now, self._pass_deadline, generation
            )
        return generation

    def check_admission(
        self,
        *,
        num_requests: int = 1,
        deadline_at: float | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> None:
        """Before work is spent on a prompt. Raises `Overloaded`, as `start` would for any such
        prompt, or for the last of `num_requests`."""
        self._check_room(num_requests)
        now = self._clock()
        times = (self.config.deadline(deadline_at, now=now), self.config.start_by(now=now))
        if known := [at for at in times if at is not None]:
            self.scheduler.check_wait(
                latest_at=min(known), priority=priority, tenant=tenant, now=now
            )

    def check_turn(self, timeout_seconds: float = 0.0) -> None:
        """First of all, for a request that has a limit of time: whether there is any to look at it.

        Args:
            timeout_seconds: its limit, 0 where that is not known.

        Raises:
            Overloaded: others that came with it have taken the router's.
        """
        if self._turn.is_over(timeout_seconds, now=self._clock()):
            self.scheduler.admission.refusals["router"] += 1
            raise Overloaded("the router has more requests to look at than it can in time")

    def explain(self, tokens: bytes, *, namespace: str = "", max_tokens: int = 0) -> Explanation:
        """Where would this prompt go, and why? Books nothing. Raises `NoWorkers`."""
        keys = self.attempts.page_keys(tokens, namespace)
        limit = max_tokens or self.config.default_max_tokens
        prompt = Prompt(tokens=tokens, page_keys=keys, tenant=namespace, max_tokens=limit)
        route = RouteRequest(
            request_id="",
            page_keys=keys,
            num_tokens=num_tokens(tokens),
            max_tokens=limit,
            namespace=namespace,
            predicted_output_tokens=self.attempts.forecasts.predict(prompt),
        )
        return self.scheduler.explain(route, now=self._clock())

    def _check(self, request: GenerationRequest, now: float) -> None:
        if not self._accepting:
            raise NoWorkers("the router is shutting down")
        self._check_room()
        if request.request_id in self.attempts.live:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", field="request_id")
        if not request.tokens:
            raise InvalidRequest("the prompt must hold at least one token", field="prompt")
        if request.deadline_at is not None and request.deadline_at <= now:
            raise DeadlineExceeded("the deadline has passed already")
        limit = self.context_tokens
        if limit is None:
            raise NoWorkers("no worker is ready")
        if request.needed_tokens > limit:
            raise too_long(request, limit)

    def _check_room(self, num_requests: int = 1) -> None:
        if self.num_live + num_requests > self.config.max_live_requests:
            self.scheduler.admission.refusals["live_requests"] += 1
            more = f" of {self.config.max_live_requests}, {num_requests} more do not fit"
            raise Overloaded(
                f"{self.num_live} requests are in progress"
                + (more if num_requests > 1 else ", which is this router's limit")
            )

    def _end(self, generation: Generation, end: FinishReason | PrebleError) -> None:
        """The router ends the request, whatever its worker is doing."""
        self.attempts.cancel_attempt(generation)
        self.attempts.settle(generation, end)

    def _cancel(self, generation: Generation) -> None:
        self._end(generation, FinishReason.CANCELLED)

    def _pass_deadline(self, generation: Generation) -> None:
        self._end(generation, DeadlineExceeded("the request's deadline passed"))

    # Workers, as the operator sees them

    def status(self) -> ClusterStatus:
        """The state of everything, for status pages."""
        return cluster_status(
            self.config,
            self.membership,
            self.scheduler,
            self.attempts,
            num_live=self.num_live,
            uptime_seconds=self._clock() - self._opened_at,
            now=self._clock(),
        )

    def add_worker(self, address: str) -> None:
        """Link to `address` (host:port); it is forgotten when it stays unreachable.

        Raises:
            InvalidRequest: that is no address.
        """
        host, separator, port = address.rpartition(":")
        if not (host and separator and port.isdigit() and 0 < int(port) < 65536):
            raise InvalidRequest(f"address must be host:port, not {address!r}", field="address")
        self.membership.add(address)

    def drain_worker(self, worker_id: str, *, deadline_seconds: float | None = None) -> None:
        """Place nothing more on it; what runs there goes on to its end, then it ends.

        Args:
            deadline_seconds: from now until what is left goes on elsewhere; None for the worker's
                own drain time.

        Raises:
            InvalidRequest: the deadline is negative or not finite.
            WorkerNotFound: it is not linked.
        """
        if deadline_seconds is not None and not 0.0 <= deadline_seconds < math.inf:
            raise InvalidRequest(
                f"deadline_seconds must be 0 or more, not {deadline_seconds:g}",
                field="deadline_seconds",
            )
        session = self.membership.session(worker_id)
        session.drain(deadline_seconds=deadline_seconds)
        self._steps.mark_draining(session, self._clock())
        if deadline_seconds is not None:
            asyncio.get_running_loop().call_later(deadline_seconds, self._empty, session)

    def _empty(self, session: Session) -> None:
        """The deadline of its drain: what can go on elsewhere does."""
        now = self._clock()
        for generation in list(session.live.values()):
            self.attempts.leave_draining(generation, now)

    def remove_worker(self, worker_id: str) -> None:
        """Forget it; its requests go elsewhere. Raises `WorkerNotFound`."""
        self.membership.remove(worker_id)

    # What the membership tells

    def worker_joined(self, session: Session) -> None:
        """The scheduler learns of it."""
        now = self._clock()
        self.attempts.suspects.book.heard_of(session.worker_id, session.spec.epoch, now=now)
        self.scheduler.observe(WorkerJoined(session.spec), now=now)

    def worker_ready(self, session: Session) -> None:
        """Requests may go there."""
        self.attempts.retry_waiting(self._clock())

    def worker_lost(self, session: Session, reason: str) -> None:
        """Its requests go elsewhere."""
        now = self._clock()
        broken = _least_output_first(session)
        if not session.draining:
            self.attempts.suspects.blame_end(session, now)
        self.scheduler.observe(WorkerLost(session.worker_id), now=now)
        for generation in broken:
            self.attempts.break_off(generation, now, fault=not session.draining)
        level = logging.WARNING if broken else logging.INFO
        _log.log(
            level, "lost worker %s with %d requests: %s", session.worker_id, len(broken), reason
        )
        for generation in broken:
            self.attempts.go_on(generation, now)

    def worker_silent(self, session: Session) -> None:
        """Its requests go elsewhere if there is an elsewhere."""
        now = self._clock()
        self.scheduler.observe(WorkerSuspended(session.worker_id, True), now=now)
        self.attempts.suspects.blame_end(session, now)
        self.attempts.leave(_least_output_first(session), now)

    def worker_lags(self, session: Session) -> None:
        """What waits there for too long goes elsewhere, if there is an elsewhere."""
        now = self._clock()
        latest = now - self.config.silence_seconds
        late = [each for each in session.live.values() if each.placed_at < latest]
        self.attempts.leave(late, now)

    def worker_speaks(self, session: Session) -> None:
        """What still waits on it goes on there; what waits elsewhere may come."""
        now = self._clock()
        self.scheduler.observe(WorkerSuspended(session.worker_id, False), now=now)
        if not session.liveness.suspect:  # It was not only taken back for want of others.
            self.attempts.suspects.book.heard_of(session.worker_id, session.spec.epoch, now=now)
        self.attempts.stay(session)
        self.attempts.retry_waiting(now)

    def worker_snapshot(self, session: Session, snapshot: CacheSnapshot) -> None:
        """The tree follows."""
        self.scheduler.observe(SnapshotReceived(session.worker_id, snapshot), now=self._clock())

    def worker_step(self, session: Session, step: pb.StepOutput) -> None:
        """Outputs and facts. Raises `PeerError` when an output is not where it must be."""
        self._steps.take(session, step, self._clock())


def _least_output_first(session: Session) -> list[Generation]:
    """What runs there, in the order in which it is tried elsewhere: suspects before others."""
    return sorted(session.live.values(), key=lambda generation: generation.attempt_output_tokens)
