"""Routers in virtual time: production's dispatcher and all below it, and what it must never do."""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from math import exp

from vopr.life import Life
from vopr.network import Network, Wire
from vopr.poison_watch import PoisonWatch
from vopr.tree_watch import TreeWatch
from vopr.violation import Violation
from vopr.workers import MODEL

from preble.errors import CapacityError, NoWorkers
from preble.v1 import worker_pb2 as pb
from preble_router.config import RouterConfig
from preble_router.dispatch import TICK_SECONDS, Dispatcher
from preble_router.generation import Generation, GenerationRequest
from preble_router.policies import make_policy
from preble_router.retry_budget import LEAST, MEMORY_SECONDS, SHARE
from preble_router.scheduler import GlobalScheduler
from preble_router.session import Session

TAKEOVER_SECONDS = 5.0
SILENCE_SECONDS = 2.0
MAX_ATTEMPTS = 3
MOVES_PER_TURN = 2
"""So few that placing again takes more than one turn."""
SLOW_READER_SECONDS = 1.0
LEEWAY_SECONDS = 0.3
"""What a limit may be overstepped by: a few ticks."""
GHOST_SECONDS = 1.0
"""Within that a worker that can be reached has stopped computing for a request that ended."""


class Router:
    """One life of a router, under watch.

    Attributes:
        accepted: requests it has taken.
        poison: what it can know of requests that bring workers down.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        *,
        rng: random.Random,
        life: Life,
        workers: tuple[str, ...],
        struck: Callable[[str], None],
    ) -> None:
        self.name = name
        self.network = network
        self.accepted = 0
        self.ended_at: dict[tuple[str, int], float] = {}
        self._loop = asyncio.get_running_loop()
        self._placed_again: deque[float] = deque()
        self._accepted_at: deque[float] = deque()
        self._attempts: dict[str, int] = {}
        self._life = life
        self._struck = struck
        self._refused = 0
        self._waits_since: dict[str, float] = {}
        self._spurned_since: dict[str, float] = {}
        self._sessions_before: set[str] = set()  # as the last instant ended
        self._shaken_at = 0.0  # when they changed, or one spoke after a silence
        self._linked: dict[str, tuple[int, Wire | None]] = {}
        scheduler = GlobalScheduler(
            make_policy(life.policy),
            rng=random.Random(rng.getrandbits(32)),
            expected_seconds=life.expected_seconds,
            window_seconds=20.0,
            max_tree_pages=life.max_tree_pages,
        )
        config = RouterConfig(
            model=MODEL,
            model_path=None,  # type: ignore[arg-type]
            router_id=name,
            workers=workers,
            policy=life.policy,
            silence_seconds=SILENCE_SECONDS,
            max_attempts=MAX_ATTEMPTS,
            max_live_requests=life.max_live,
            max_queue_seconds=life.max_queue_seconds,
            slow_reader_seconds=SLOW_READER_SECONDS,
        )
        self.dispatcher = Dispatcher(
            config,
            scheduler,
            rng=random.Random(rng.getrandbits(32)),
            takeover_seconds=TAKEOVER_SECONDS,
            moves_per_turn=MOVES_PER_TURN,
            clock=self._loop.time,
            dial=network.dial_as(name),
        )
        self.poison = PoisonWatch(
            name,
            network,
            self.dispatcher,
            prompts=life.poison,
            most=2 if len(life.asks) == 1 else 3,
        )
        self.trees = TreeWatch(
            name, network, self.dispatcher, max_pages=life.max_tree_pages, struck=struck
        )
        self.dispatcher.open()

    # What clients do.

    def start(self, request: GenerationRequest) -> Generation:
        generation = self.dispatcher.start(request)
        self.accepted += 1
        self._accepted_at.append(self._loop.time())
        return generation

    def judge_failure(self, generation: Generation) -> str:
        """It ended with `WorkerFailed`: exactly when may it?"""
        attempts, now = self.dispatcher.attempts, self._loop.time()
        if not self.dispatcher._accepting:
            return "router gone"
        tried = generation.attempt  # Some were never sent: their links broke before.
        if MAX_ATTEMPTS <= generation.num_failures <= tried:
            return "failed: all attempts"
        if 1 <= generation.num_failures <= tried and attempts.suspects.is_poisoned(generation, now):
            return "failed: engines"  # perhaps on another choice of its prompt
        if attempts.budget.refused_total > self._refused:
            self._refused += 1
            return "failed: retry budget"
        waits_since = self._waits_since.get(generation.request_id, now)
        if now - waits_since >= TAKEOVER_SECONDS - LEEWAY_SECONDS:
            return "failed: no worker"
        raise Violation(
            f"{generation.request_id} failed after {generation.num_failures} failures "
            f"and {now - waits_since:.2f} s without a worker"
        )

    def judge_refusal(self, error: CapacityError, *, has_deadline: bool) -> None:
        """It took no new request: had it nobody, or too much to do?"""
        dispatcher = self.dispatcher
        ready = [s for s in dispatcher.membership.sessions.values() if s.ready]
        if isinstance(error, NoWorkers):
            if ready and dispatcher._accepting:
                raise Violation(f"{self.name} says that no worker is ready, and {len(ready)} are")
        elif dispatcher.num_live >= self._life.max_live:
            self._struck("router is full")
        elif not (has_deadline or self._life.max_queue_seconds):
            raise Violation(f"{self.name} is not overloaded with {dispatcher.num_live}")
        elif not dispatcher.attempts.suspects.book.has_suspects and (idle := self._idle(ready)):
            raise Violation(f"{self.name} says that all are busy, and {idle} are not")
        else:
            self._struck("too late everywhere")

    def _idle(self, ready: list[Session]) -> list[str]:
        """Those that would begin with a new request at once."""
        sessions = {session.worker_id: session for session in ready}
        return [
            worker.spec.worker_id
            for worker in self.dispatcher.scheduler._roster
            if (session := sessions.get(worker.spec.worker_id)) is not None
            and (worker.is_open and worker.feed.has_view and not session.live)
            and (load := session.load) is not None
            and not (load.num_waiting or load.num_running)
        ]

    # What passes over its wires.

    def submitted(self, wire: Wire, submit: pb.Submit) -> None:
        now = self._loop.time()
        self._check_attempt(submit, now)
        self.poison.submitted(wire, submit, now)
        if wire.draining_since < now:
            raise Violation(f"{submit.request_id} was sent to {wire}, which drains")
        if self._is_mute(wire):
            self._check_silent(wire, submit.request_id, now)

    def _check_silent(self, wire: Wire, request_id: str, now: float) -> None:
        """A silent worker may be used where so many are that not all are ejected, and until the
        tick after some of them have spoken or are lost."""
        sessions = self.dispatcher.membership.sessions
        if now - self._shaken_at < 2 * TICK_SECONDS or sessions.keys() != self._sessions_before:
            return
        wires = [each for each in map(self.trees.wire_to, sessions.values()) if each is not None]
        silent = [each for each in wires if self._is_mute(each)]
        if wire in silent and len(silent) <= max(1, len(sessions) // 2):
            raise Violation(f"{request_id} was sent to {wire}, which is silent")

    def _is_mute(self, wire: Wire) -> bool:
        """For longer than a worker may be silent."""
        now = self._loop.time()
        since = max(wire.heard_at, self._loop.jumped_at)  # type: ignore[attr-defined]
        limit = SILENCE_SECONDS + wire.announced_seconds + LEEWAY_SECONDS
        return now - since > limit

    def _check_attempt(self, submit: pb.Submit, now: float) -> None:
        generation = self.dispatcher.attempts.live.get(submit.request_id)
        former = self._attempts.get(submit.request_id, 0)
        if submit.attempt <= former:
            raise Violation(f"attempt {submit.attempt} of {submit.request_id} after {former}")
        self._attempts[submit.request_id] = submit.attempt
        if generation is None:
            return  # It ended while the message waited.
        if generation.num_failures >= MAX_ATTEMPTS:
            raise Violation(f"{submit.request_id} is sent after {generation.num_failures} failures")
        if generation.num_failures >= 2:
            self._placed_again.append(now)
            spent = _faded(self._placed_again, now)
            if spent > LEAST + SHARE * _faded(self._accepted_at, now) + 1e-6:
                raise Violation(f"{submit.request_id} is placed again beyond the retry budget")

    def heard(self, wire: Wire, message: pb.WorkerMessage) -> None:
        if self._is_mute(wire):
            self._shaken_at = self._loop.time()
        wire.heard_at = self._loop.time()
        match message.WhichOneof("message"):
            case "hello":
                self.poison.hello(wire)
            case "step":
                step = message.step
                wire.announced_seconds = step.next_step_seconds
                if step.phase == pb.PHASE_DRAINING:
                    wire.draining_since = min(wire.draining_since, wire.heard_at)
                self.trees.step(wire, step)
                self._check_ghosts(wire, step)
                self.poison.step(wire, step)
            case "snapshot":
                wire.feed.snapshot(message.snapshot)

    def _check_ghosts(self, wire: Wire, step: pb.StepOutput) -> None:
        now = self._loop.time()
        for output in step.outputs:
            if output.request_id in self.dispatcher.attempts.live or not output.tokens:
                continue  # That it was broken off is told after the next step, however slow.
            ended_at = self.ended_at.setdefault((output.request_id, output.attempt), now)
            since = max(ended_at, wire.disturbed_at, self._loop.jumped_at)  # type: ignore[attr-defined]
            if now - since > GHOST_SECONDS and not wire.is_blocked:
                raise Violation(f"{wire} still computes {output.request_id}, which ended long ago")

    # Invariants.

    def check(self) -> None:
        """Cheap: after every instant."""
        dispatcher, now = self.dispatcher, self._loop.time()
        attempts = dispatcher.attempts
        live = attempts.live
        if len(live) > self._life.max_live:
            raise Violation(f"{len(live)} live requests")
        num_placed = self._check_live(now) if live else 0
        if attempts._give_up_at or self._waits_since:
            self._check_waiting(now)
        num_listed = 0
        for worker_id, session in dispatcher.membership.sessions.items():
            num_listed += len(session.live)
            former = self._linked.get(worker_id)
            if former is None or former[0] != session.spec.epoch:
                self._check_epoch(session, former, now)
        if dispatcher.membership.sessions.keys() != self._sessions_before:
            self._sessions_before = set(dispatcher.membership.sessions)
            self._shaken_at = now
        if num_listed != num_placed:
            raise Violation("sessions list requests that are not placed there")
        if len(dispatcher.scheduler._bookings) != num_placed:
            raise Violation("the books do not hold exactly the placed requests")
        self.trees.check()
        if self.accepted != len(live) + attempts.outcomes.total():
            raise Violation("a request ended twice or never")

    def _check_live(self, now: float) -> int:
        """Each is where it says, or waits, and is in time; how many are placed."""
        attempts = self.dispatcher.attempts
        latest = now - LEEWAY_SECONDS
        jumped = self._has_jumped(now)
        num_placed = 0
        for request_id, generation in attempts.live.items():
            session = generation.session
            if session is not None:
                num_placed += 1
                if session.live.get(request_id) is not generation:
                    raise Violation(f"{request_id} is not on its session's list")
            elif request_id not in attempts._give_up_at:
                raise Violation(f"{request_id} waits for ever")
            deadline_at = generation.request.deadline_at
            if deadline_at is not None and deadline_at < latest and not jumped:
                raise Violation(f"{request_id} outlives its deadline")
        return num_placed

    def _has_jumped(self, now: float) -> bool:
        """A moment ago: nobody can have done yet what has become due."""
        return now - self._loop.jumped_at < LEEWAY_SECONDS  # type: ignore[attr-defined, no-any-return]

    def _check_waiting(self, now: float) -> None:
        """Nobody waits for too long, nor while a worker could have it."""
        attempts, jumped = self.dispatcher.attempts, self._has_jumped(now)
        waiting = attempts._give_up_at
        for request_id in [i for i in self._waits_since if i in attempts.live and i not in waiting]:
            del self._waits_since[request_id]
            self._spurned_since.pop(request_id, None)
        for request_id, give_up_at in waiting.items():
            self._waits_since.setdefault(request_id, now)
            if now > give_up_at + LEEWAY_SECONDS and not jumped:
                raise Violation(f"{request_id} waits for too long")
            if jumped or not self._is_spurned(attempts.live[request_id], now):
                self._spurned_since.pop(request_id, None)
            elif now - self._spurned_since.setdefault(request_id, now) > LEEWAY_SECONDS:
                raise Violation(f"{request_id} waits, and a worker is ready")

    def _is_spurned(self, generation: Generation, now: float) -> bool:
        """It has no worker, and some worker has no reason not to take it."""
        return (
            generation.session is None
            and generation.suspected_until <= now
            and any(
                session.ready
                and not session.liveness.suspect
                and (session.worker_id, session.serial) not in generation.failed
                for session in self.dispatcher.membership.sessions.values()
            )
        )

    def _check_epoch(
        self, session: Session, former: tuple[int, Wire | None] | None, now: float
    ) -> None:
        """No process takes the name of a newer one that is well."""
        worker_id, epoch = session.worker_id, session.spec.epoch
        if former is not None and former[1] is not None and epoch < former[0]:
            wire = former[1]
            if not wire.was_broken and not wire.is_blocked and now - wire.heard_at < 1.0:
                raise Violation(f"{worker_id} is replaced by an older process")
        self._linked[worker_id] = epoch, self.trees.wire_to(session)

    def check_deeply(self) -> None:
        """Books, tree and table; marks that should have expired; who is silent and not suspect."""
        dispatcher, now = self.dispatcher, self._loop.time()
        scheduler = dispatcher.scheduler
        scheduler.check()
        dispatcher.attempts.suspects.book.check()
        live = {view.worker_id: view.live_requests for view in scheduler.workers()}
        listed = {i: len(s.live) for i, s in dispatcher.membership.sessions.items()}
        if live != listed:
            raise Violation(f"books {live}, sessions {listed}")
        if self._has_jumped(now):
            return
        for booking in scheduler._bookings.values():
            if booking.path_end is not None and booking.expected_until < now - LEEWAY_SECONDS:
                raise Violation(f"the path of {booking.request_id} is expected for ever")
        self.trees.check_deeply()
        for session in dispatcher.membership.sessions.values():
            wire = self.trees.wire_to(session)
            if wire is not None and self._is_mute(wire) and not session.liveness.suspect:
                raise Violation(f"{wire} is silent and nobody noticed")

    def unhealthy(self, processes: "dict[str, tuple[int, tuple[int, int]]]") -> str:
        """Why it is not at rest with all workers; "" when it is.

        Args:
            processes: epoch and digest of each worker's newest process.
        """
        dispatcher = self.dispatcher
        if dispatcher.num_live:
            return f"{dispatcher.num_live} requests live"
        sessions = dispatcher.membership.sessions
        workers = {worker.spec.worker_id: worker for worker in dispatcher.scheduler._roster}
        for name, (epoch, digest) in processes.items():
            session = sessions.get(name)
            if session is None or session.spec.epoch != epoch:
                return f"{self.name} is not linked to {name}"
            if not session.ready or session.live or session.trial is not None:
                return f"{self.name} does not use {name}"
            worker = workers[name]
            if not worker.is_open or not worker.feed.is_synced:
                return f"{self.name} is not in sync with {name}"
            if not self.trees.is_right(worker.slot, digest):
                return f"{self.name} believes other things of {name}'s cache than are true"
        if dispatcher.attempts._give_up_at or not dispatcher.attempts.idle.is_set():
            return f"{self.name} is not idle"
        return ""


def _faded(times: "deque[float]", now: float) -> float:
    """How many of them still count, each less the older it is."""
    while times and now - times[0] > 20 * MEMORY_SECONDS:
        times.popleft()
    return sum(exp((at - now) / MEMORY_SECONDS) for at in times)


class RouterHost:
    """A place where a router runs; None between two lives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.router: Router | None = None
        self.num_lives = 0
        self.accepted = 0


assert TICK_SECONDS < LEEWAY_SECONDS
