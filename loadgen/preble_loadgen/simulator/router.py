"""The router's duties around the production `GlobalScheduler`, without sockets and tokenizers.

What the dispatcher, its attempts and the membership do in production for each message and tick,
this does under the agenda's clock: outputs to their requests, facts to the scheduler in the order
cache before report, snapshots asked for, silent workers left, broken attempts placed again.
"""

import random
from collections.abc import Callable

from preble.errors import DeadlineExceeded, NoWorkers, Overloaded
from preble.events import CacheEvents
from preble.page_keys import TOKEN_BYTES, namespace_seed, num_tokens, page_keys
from preble.types import FinishReason, RequestOutput
from preble_loadgen.simulator.agenda import Agenda
from preble_loadgen.simulator.flight import Flight
from preble_loadgen.simulator.lengths import SimulatedLengths
from preble_loadgen.simulator.messages import (
    Cancel,
    Hello,
    Message,
    Report,
    Snapshot,
    Submit,
    TakeSnapshot,
)
from preble_loadgen.simulator.options import SimulationOptions
from preble_loadgen.simulator.session import Session
from preble_loadgen.simulator.worker import SimulatedWorker
from preble_router.liveness import Change
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    Event,
    Placement,
    Progress,
    RequestFailed,
    RequestFinished,
    RouteRequest,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
    WorkerLost,
    WorkerSuspended,
)

TICK_SECONDS = 0.05
"""As in the router's dispatcher."""


class SimulatedRouter:
    """One life of the router.

    Args:
        placed: is told every placement.
        ended: is told the end of every request: its finish reason, or an error.

    Attributes:
        live: requests accepted and not ended, by id.
        sessions: linked workers, by id.
        retries_total: attempts after the first.
    """

    def __init__(
        self,
        agenda: Agenda,
        options: SimulationOptions,
        *,
        life: int,
        placed: Callable[[Placement], None],
        ended: Callable[[Flight, FinishReason | str], None],
    ) -> None:
        self.scheduler = GlobalScheduler(
            make_policy(options.policy),
            rng=random.Random(f"{options.seed} router {life}"),
            page_tokens=options.page_tokens,
        )
        self.live: dict[str, Flight] = {}
        self.sessions: dict[str, Session] = {}
        self.retries_total = 0
        self._lengths = SimulatedLengths(options)
        self._agenda = agenda
        self._options = options
        self._placed = placed
        self._ended = ended
        self._links: dict[str, Session] = {}
        self._give_up_at: dict[str, float] = {}
        self._stopped = False
        self._wire_rng = random.Random(f"{options.seed} wire {life}")
        faults = options.faults
        self._loss = max((f.probability for f in faults if f.kind == "loss"), default=0.0)
        self._doubling = max((f.probability for f in faults if f.kind == "duplicate"), default=0.0)
        self._stale_seconds = max((f.seconds for f in faults if f.kind == "stale"), default=0.0)
        agenda.after(TICK_SECONDS, self._tick)

    # Workers

    def link(self, worker: SimulatedWorker) -> None:
        """Connect to a worker that has begun its life."""
        session = Session(
            worker,
            self._agenda,
            wire_seconds=self._options.wire_seconds,
            silence_seconds=self._options.silence_seconds,
        )
        self._links[worker.worker_id] = session
        worker.link()

    def send_up(self, worker: SimulatedWorker, message: Message) -> None:
        """A worker sends a message, which arrives if the link lasts until then."""
        session = self._links.get(worker.worker_id)
        if session is not None:
            self._agenda.after(self._options.wire_seconds, self._receive, session, message)

    def lose(self, worker: SimulatedWorker) -> None:
        """The worker's connection broke; the router learns it behind what was sent before."""
        session = self._links.pop(worker.worker_id, None)
        if session is not None:
            self._agenda.after(self._options.wire_seconds, self._lose, session)

    def stop(self) -> None:
        """The router dies: its requests fail, and the workers cancel them."""
        self._stopped = True
        for session in self._links.values():
            session.ended = True
            session.send(*(Cancel(request_id) for request_id in session.live))
        self._links.clear()
        for flight in list(self.live.values()):
            self._ended(flight, "router_lost")
        self.live.clear()

    def _receive(self, session: Session, message: Message) -> None:
        if session.ended:
            return
        match message:
            case Report():
                self._hear(session, next_step_seconds=message.next_step_seconds)
                self._step(session, message)
            case Snapshot(snapshot):
                self._hear(session)
                self._tell(session, SnapshotReceived(session.worker_id, snapshot))
                if not session.known:
                    session.known = True
                    self._retry_waiting()
            case Hello(spec):
                self.scheduler.observe(WorkerJoined(spec), now=self._agenda.now)
                self.sessions[session.worker_id] = session

    def _lose(self, session: Session) -> None:
        if session.ended:
            return
        session.ended = True
        del self.sessions[session.worker_id]
        broken = list(session.live.values())
        for flight in broken:
            self._break_off(flight)
        self.scheduler.observe(WorkerLost(session.worker_id), now=self._agenda.now)
        for flight in broken:
            self._go_on(flight)

    def _hear(self, session: Session, *, next_step_seconds: float = 0.0) -> None:
        now = self._agenda.now
        change = session.liveness.heard(next_step_seconds=next_step_seconds, now=now)
        if change is Change.BACK:
            session.renew()
            self.scheduler.observe(WorkerSuspended(session.worker_id, False), now=now)
            for request_id in session.live:
                self._give_up_at.pop(request_id, None)
            self._retry_waiting()

    def _tell(self, session: Session, event: Event) -> None:
        """The scheduler learns a fact that the worker reported."""
        if self._stale_seconds:
            self._agenda.after(self._stale_seconds, self._tell_late, session, event)
        else:
            self.scheduler.observe(event, now=self._agenda.now)

    def _tell_late(self, session: Session, event: Event) -> None:
        if not session.ended:
            self.scheduler.observe(event, now=self._agenda.now)

    # Steps

    def _step(self, session: Session, report: Report) -> None:
        for batch in self._arriving(report.cache):
            self._tell(session, CacheChanged(session.worker_id, batch))
        progress = self._deliver_decoded(session, report)
        finished: list[tuple[Flight, FinishReason]] = []
        for output in report.others:
            flight = session.live.get(output.request_id)
            if flight is None or flight.attempt != output.attempt:
                continue  # of an attempt that was cancelled or moved
            if made := self._deliver(flight, output, report):
                progress.append(made)
            if output.finish_reason is not None:
                finished.append((flight, output.finish_reason))
        self._tell(
            session,
            StepReport(
                worker_id=session.worker_id,
                load=report.load,
                step_seconds=report.step_seconds,
                predicted_step_seconds=report.predicted_step_seconds,
                progress=tuple(progress),
            ),
        )
        for flight, reason in finished:
            self._end_attempt(flight, reason)

    def _arriving(self, batch: CacheEvents | None) -> list[CacheEvents]:
        """The batch, or none, or twice, as the faults will have it."""
        if batch is None:
            return []
        if self._loss and self._wire_rng.random() < self._loss:
            return []
        if self._doubling and self._wire_rng.random() < self._doubling:
            return [batch, batch]
        return [batch]

    def _deliver_decoded(self, session: Session, report: Report) -> list[Progress]:
        """To each request that goes on, one token of every step."""
        decoded, ends, live = report.decoded, report.ends, session.live
        progress = []
        for request_id, attempt in zip(decoded.request_ids, decoded.attempts, strict=True):
            flight = live.get(request_id)
            if flight is not None and flight.attempt == attempt:
                flight.receive(ends, None)
                progress.append(Progress(request_id, attempt, len(ends)))
        return progress

    def _deliver(self, flight: Flight, output: RequestOutput, report: Report) -> Progress | None:
        """What the request got in the report's steps, whose last token is in `output`."""
        count = output.position + len(output.tokens) // TOKEN_BYTES - flight.num_output
        assert 0 <= count <= len(report.ends), "an output was lost or doubled"
        if not count:
            return None
        is_first = flight.num_output == flight.num_before
        cached = output.cached_tokens if is_first else None
        flight.receive(report.ends[-count:], cached)
        return Progress(flight.request_id, flight.attempt, count, cached)

    def _end_attempt(self, flight: Flight, reason: FinishReason) -> None:
        """The worker is done with the request."""
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._settle(flight, reason)
        elif reason is FinishReason.DEADLINE:
            self._settle(flight, DeadlineExceeded.code)
        else:
            self._break_off(flight)
            self._go_on(flight, wait=False)

    # Requests

    def start(self, flight: Flight) -> None:
        """Accept a new request and place it at once."""
        self.live[flight.request_id] = flight
        try:
            self._place(flight)
        except (NoWorkers, Overloaded) as error:
            self._settle(flight, error.code)

    def _place(self, flight: Flight) -> None:
        """Book and submit the next attempt; changes nothing when it raises `NoWorkers`."""
        tokens = flight.known_tokens()
        seed = namespace_seed(flight.request.namespace)
        keys = page_keys(tokens, page_tokens=self._options.page_tokens, seed=seed)
        patience = self._options.max_queue_seconds
        if flight.prompt is None:
            self._lengths.predict(flight, keys)
        placement = self.scheduler.place(
            RouteRequest(
                request_id=flight.request_id,
                page_keys=keys,
                num_tokens=num_tokens(tokens),
                max_tokens=flight.stated_max_tokens - flight.num_output,
                attempt=flight.attempt + 1,
                namespace=flight.request.namespace,
                tenant=flight.tenant,
                predicted_output_tokens=flight.remaining_output_tokens,
                excluded=self._excluded(flight),
                start_by=self._agenda.now + patience if patience else None,
                deadline_at=flight.deadline_at,
            ),
            now=self._agenda.now,
        )
        self._placed(placement)
        session = self.sessions[placement.worker_id]
        flight.place(placement, session)
        session.send(Submit(flight.attempt_request(tokens, placement)))

    def _excluded(self, flight: Flight) -> frozenset[str]:
        """Workers that failed it and have not come back since."""
        if not flight.failed:
            return frozenset()
        return frozenset(
            worker_id
            for worker_id, serial in flight.failed
            if worker_id in self.sessions and self.sessions[worker_id].serial == serial
        )

    def _break_off(self, flight: Flight) -> None:
        """The attempt is over without an end of the request: take it off the books."""
        session = flight.session
        assert session is not None
        flight.failed.add((session.worker_id, session.serial))
        flight.unplace()
        failed = RequestFailed(flight.request_id, flight.attempt)
        self.scheduler.observe(failed, now=self._agenda.now)

    def _go_on(self, flight: Flight, *, wait: bool = True) -> None:
        """Place a broken-off request again; it fails where that cannot be."""
        if flight.attempt >= self._options.max_attempts:
            self._settle(flight, "worker_failed")
            return
        try:
            self._place(flight)
        except NoWorkers:
            if wait:
                give_up_at = self._agenda.now + self._options.takeover_seconds
                self._give_up_at.setdefault(flight.request_id, give_up_at)
            else:
                self._settle(flight, "worker_failed")
        else:
            self.retries_total += 1
            self._give_up_at.pop(flight.request_id, None)

    def _leave_silent(self, flight: Flight) -> None:
        """Move a request off a silent worker, or let it wait there for whoever speaks first."""
        session = flight.session
        assert session is not None
        if self._has_open_worker(flight, other_than=session.worker_id):
            session.send(Cancel(flight.request_id))
            self._break_off(flight)
            self._go_on(flight)
        else:
            give_up_at = self._agenda.now + self._options.takeover_seconds
            self._give_up_at.setdefault(flight.request_id, give_up_at)

    def _has_open_worker(self, flight: Flight, *, other_than: str = "") -> bool:
        excluded = self._excluded(flight) | {other_than}
        return flight.attempt < self._options.max_attempts and any(
            session.ready and session.worker_id not in excluded
            for session in self.sessions.values()
        )

    def _retry_waiting(self) -> None:
        """Look again for workers that take over, and give up where the time has passed."""
        for request_id, give_up_at in list(self._give_up_at.items()):
            flight = self.live[request_id]
            if flight.session is not None:
                self._leave_silent(flight)
            elif self._has_open_worker(flight):
                self._go_on(flight)
            if request_id in self._give_up_at and self._agenda.now >= give_up_at:
                if flight.session is not None:
                    flight.session.send(Cancel(request_id))
                self._settle(flight, "worker_failed")

    def _settle(self, flight: Flight, end: FinishReason | str) -> None:
        """The one end of a request."""
        del self.live[flight.request_id]
        self._give_up_at.pop(flight.request_id, None)
        if isinstance(end, FinishReason):
            self._lengths.finished(flight)
        if flight.session is not None:
            flight.unplace()
            event: Event = (
                RequestFinished(
                    flight.request_id, flight.attempt, flight.num_output - flight.num_before
                )
                if isinstance(end, FinishReason) or end == DeadlineExceeded.code
                else RequestFailed(flight.request_id, flight.attempt)
            )
            self.scheduler.observe(event, now=self._agenda.now)
        self._ended(flight, end)

    # Time

    def _tick(self) -> None:
        if self._stopped:
            return
        now = self._agenda.now
        for session in list(self.sessions.values()):
            if session.liveness.check(now=now) is Change.SUSPECT:
                self.scheduler.observe(WorkerSuspended(session.worker_id, True), now=now)
                for flight in list(session.live.values()):
                    self._leave_silent(flight)
        if self._give_up_at:
            self._retry_waiting()
        wakeup = self.scheduler.next_wakeup()
        if wakeup is not None and wakeup <= now:
            for action in self.scheduler.tick(now=now):
                if action.worker_id in self.sessions:
                    self.sessions[action.worker_id].send(TakeSnapshot(action.request))
        self._agenda.after(TICK_SECONDS, self._tick)
