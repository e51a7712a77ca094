"""The router's brain: where each request goes, from what the workers said and what was placed.

`place` decides and books in one go, so that the next request of a burst already sees the last.
Everything else that happens comes through `observe`; `tick` does what has become due and returns
what the shell must order. No clock, no I/O: see `stimuli` for all inputs and outputs.
"""

import random
from collections import deque
from collections.abc import Callable

import numpy as np

from preble.errors import PeerError
from preble_router.admission import Admission
from preble_router.booking import EXPECTED_SECONDS, Booking
from preble_router.candidates import Candidates
from preble_router.cluster_tree import MAX_TREE_PAGES, ClusterTree
from preble_router.cluster_worker import ClusterWorker
from preble_router.event_feed import EventFeed
from preble_router.host_tree import HostTree
from preble_router.load import WorkerLoad
from preble_router.output_length import OutputLength
from preble_router.pace import FleetPace
from preble_router.policies.policy import RoutingPolicy
from preble_router.roster import Roster
from preble_router.stimuli import (
    Action,
    CacheChanged,
    Event,
    Explanation,
    Placement,
    Progress,
    RequestFailed,
    RequestFinished,
    RouteRequest,
    SnapshotReceived,
    StepReport,
    WorkerDrained,
    WorkerJoined,
    WorkerLost,
    WorkerSuspended,
)
from preble_router.tree_sync import TreeSync
from preble_router.worker_table import WorkerTable
from preble_router.worker_view import TreeSummary, WorkerView

Input = RouteRequest | Event | None
"""What the scheduler was given: a request to place, an event, or None for a tick."""
Record = Callable[[float, Input | Placement], None]

_SWEEP_SECONDS = 0.25
"""Uses that leave the window are counted off at most so often, and at most so many at a time, so
that neither many wake-ups nor a long one disturb the shell."""
_SWEEP_USES = 2000


class GlobalScheduler:
    """Places requests with `policy`.

    Attributes:
        page_tokens: tokens per page key; a worker with other pages is refused.
        window_seconds: how long a prefix that nobody holds is remembered after its last use.
        expected_seconds: how long at most a placed request makes its path count as cached.
        max_tree_pages: of its view of the caches, and again of those in host memory; where it is
            full, what was used long ago is no longer known.
        admission: refuses requests that would be too late, and counts them.
        record: is told every input with its time, and every placement; see `journal`.
    """

    def __init__(
        self,
        policy: RoutingPolicy,
        *,
        rng: random.Random,
        page_tokens: int = 16,
        window_seconds: float = 180.0,
        expected_seconds: float = EXPECTED_SECONDS,
        max_tree_pages: int = MAX_TREE_PAGES,
        record: Record | None = None,
    ) -> None:
        self.page_tokens = page_tokens
        self.window_seconds = window_seconds
        self.expected_seconds = expected_seconds
        self.policy = policy
        self.admission = Admission(shares_fairly=policy.shares_fairly)
        self._rng = rng
        self._record = record
        self._tree = ClusterTree(page_tokens, max_pages=max_tree_pages)
        self._host_tree = HostTree(page_tokens, max_pages=max_tree_pages)
        self._sync = TreeSync(self._tree, self._host_tree)
        self._table = WorkerTable()
        self._roster = Roster(self._table)
        self._output_length = OutputLength()
        self._bookings: dict[str, Booking] = {}
        self._fleet_paces: dict[str, FleetPace] = {}
        self._expecting: deque[Booking] = deque()
        self._swept_at = float("-inf")
        self._now = float("-inf")
        policy.bind(self._tree, self._table)

    # Requests

    def place(self, request: RouteRequest, *, now: float) -> Placement:
        """Choose a worker for `request` and book it there; replaces its former attempt.

        Raises:
            NoWorkers: nobody may take it.
            Overloaded: nobody can serve it in the time it has.
        """
        if self._record is not None:
            self._record(now, request)
        self._now = now
        former = self._bookings.get(request.request_id)
        if former is not None:
            assert request.attempt > former.attempt
            self._close(former, now=now)
        candidates = self._candidates(request, now=now)
        choice = self.admission.admit(candidates, self.policy.choose(candidates, self._rng))
        self._book(candidates, choice.slot)
        placement = candidates.placement(choice.slot, choice.reason)
        if self._record is not None:
            self._record(now, placement)
        return placement

    def check_wait(
        self, *, latest_at: float, priority: int = 0, tenant: str = "", now: float
    ) -> None:
        """Whether some queue lets a first token come by `latest_at`; raises `Overloaded`."""
        slots = self._roster.open_slots
        self.admission.check_wait(
            self._table, slots, latest_at=latest_at, priority=priority, tenant=tenant, now=now
        )

    def explain(self, request: RouteRequest, *, now: float) -> Explanation:
        """What `place` would do now, and how each worker that may take it compares.

        Raises:
            NoWorkers: nobody may take it.
        """
        candidates = self._candidates(request, now=now)
        luck = self._rng.getstate()
        choice = self.policy.choose(candidates, self._rng)
        self._rng.setstate(luck)
        return Explanation(
            placement=candidates.placement(choice.slot, choice.reason),
            candidates=candidates.listed(self.policy.terms(candidates)),
        )

    def _candidates(self, request: RouteRequest, *, now: float) -> Candidates:
        open_slots, barred = self._roster.open_to(request)
        match = self._tree.match(request.page_keys)
        # A worker computes at least the page with the last prompt token.
        most = max(request.num_tokens - 1, 0) // self.page_tokens * self.page_tokens
        warm = self._tree.warm_tokens(match, most=most)
        cached, held = self._host_tree.with_loaded(warm, request.page_keys, self._table, most=most)
        length = np.array(float(request.num_tokens))
        return Candidates(
            request=request,
            now=now,
            open_slots=open_slots,
            barred=barred,
            cached_tokens=cached,
            missed_tokens=length - cached,
            held_tokens=held,
            length=length,
            wait_seconds=self.admission.queues.wait_seconds(
                self._table, priority=request.priority, tenant=request.tenant
            ),
            table=self._table,
            match=match,
            predicted_output_tokens=self._output_length.predict(request),
        )

    def _book(self, candidates: Candidates, slot: int) -> None:
        request, now = candidates.request, candidates.now
        worker = self._roster.at(slot)
        path_end = self._tree.place(
            slot, request.page_keys, candidates.match, now=now, namespace=request.namespace
        )
        booking = candidates.booking(
            slot, path_end=path_end, expected_until=now + self.expected_seconds
        )
        self._bookings[request.request_id] = booking
        self._expecting.append(booking)
        worker.load.book(booking)
        self.admission.booked(booking)
        worker.placed_total += 1
        self._table.mean_prompt += 0.01 * (request.num_tokens - self._table.mean_prompt)
        self._publish(worker)
        self.policy.placed(candidates, booking, path_end)

    # Events

    def observe(self, event: Event, *, now: float) -> None:
        """Take note of a fact. Of one step, cache events come before the report.

        Raises:
            PeerError: the worker speaks of pages this router cannot know.
        """
        if self._record is not None:
            self._record(now, event)
        self._now = now
        match event:
            case StepReport():
                self._receive_report(event, now=now)
            case CacheChanged():
                worker = self._roster.get(event.worker_id)
                if worker is not None and self._sync.change(worker, event.batch, now=now):
                    self._roster.reopen()
            case RequestFinished():
                self._finish(event, now=now)
            case RequestFailed():
                booking = self._booking(event.request_id, event.attempt)
                if booking is not None:
                    self._close(booking, now=now)
            case SnapshotReceived():
                worker = self._roster.get(event.worker_id)
                if worker is not None and self._sync.replace(worker, event.snapshot, now=now):
                    self._roster.reopen()
            case WorkerJoined():
                self._join(event, now=now)
            case WorkerLost():
                self._lose(event.worker_id, now=now)
            case WorkerSuspended():
                self._roster.suspend(event.worker_id, suspended=event.suspended)
            case WorkerDrained():
                self._roster.drain(event.worker_id)

    def _join(self, event: WorkerJoined, *, now: float) -> None:
        spec = event.spec
        if spec.page_tokens != self.page_tokens:
            raise PeerError(
                f"worker {spec.worker_id} has pages of {spec.page_tokens} tokens, "
                f"this router of {self.page_tokens}"
            )
        self._lose(spec.worker_id, now=now)
        slot = self._roster.free_slot()
        if slot is None:
            slot = self._tree.add_slot()
            self._host_tree.add_slot()
            self._table.add_slot()
        fleet = self._fleet_paces.setdefault(spec.cost.name, FleetPace())
        luck = random.Random(f"{spec.worker_id} {spec.epoch}")
        feed = EventFeed(spec.epoch, now=now, rng=luck)
        worker = ClusterWorker(spec=spec, slot=slot, load=WorkerLoad(spec, fleet), feed=feed)
        self._roster.join(worker)
        self._sync.join(worker)
        self._publish(worker)
        self.policy.joined(slot, spec)

    def _lose(self, worker_id: str, *, now: float) -> None:
        worker = self._roster.get(worker_id)
        if worker is None:
            return
        for booking in [b for b in self._bookings.values() if b.slot == worker.slot]:
            self._close(booking, now=now, is_lost=True)
        self._sync.leave(worker)
        self.policy.left(worker.slot)
        self._roster.leave(worker)

    def _receive_report(self, report: StepReport, *, now: float) -> None:
        worker = self._roster.get(report.worker_id)
        if worker is None:
            return
        for progress in report.progress:
            booking = self._booking(progress.request_id, progress.attempt)
            if booking is not None and booking.slot == worker.slot:
                self._progress(worker, booking, progress, now=now)
        worker.load.receive_step(
            observed_seconds=report.step_seconds,
            predicted_seconds=report.predicted_step_seconds,
            now=now,
        )
        worker.load.receive_report(report.load, now=now)
        worker.price_eviction(self._tree, self._table, now=now)
        self._publish(worker)
        self._sync.compare(worker, report.load, now=now)

    def _progress(
        self, worker: ClusterWorker, booking: Booking, progress: Progress, *, now: float
    ) -> None:
        was_decoding = booking.is_decoding
        worker.load.progress(booking, progress.num_tokens)
        if was_decoding or not booking.is_decoding:
            return
        self._withdraw(booking)
        self.admission.started(booking, now=now)
        cached = progress.cached_tokens
        if cached is not None:
            worker.predicted_cached_total += booking.cached_tokens
            worker.actual_cached_total += cached
            self.policy.started(booking, cached_tokens=cached, now=now)

    def _finish(self, event: RequestFinished, *, now: float) -> None:
        booking = self._booking(event.request_id, event.attempt)
        if booking is None:
            return
        self._output_length.observe(event.output_tokens)
        self._close(booking, now=now, output_tokens=event.output_tokens)

    def _booking(self, request_id: str, attempt: int) -> Booking | None:
        """The live booking of exactly this attempt."""
        booking = self._bookings.get(request_id)
        return booking if booking is not None and booking.attempt == attempt else None

    def _close(
        self,
        booking: Booking,
        *,
        now: float,
        output_tokens: int | None = None,
        is_lost: bool = False,
    ) -> None:
        """Take a live booking off: the only place where one ends."""
        del self._bookings[booking.request_id]
        self._withdraw(booking)
        worker = self._roster.at(booking.slot)
        worker.load.close(booking)
        if not is_lost:
            self._publish(worker)
        self.admission.closed(booking, broke_off=output_tokens is None, now=now)
        self.policy.closed(booking, output_tokens=output_tokens, now=now)

    def _withdraw(self, booking: Booking) -> None:
        if booking.path_end is not None:
            self._tree.withdraw(booking.slot, booking.path_end)
            booking.path_end = None
        expecting = self._expecting
        while expecting and expecting[0].path_end is None:
            expecting.popleft()

    def _publish(self, worker: ClusterWorker) -> None:
        self._table.publish(worker.slot, worker.load, mean_output=self._output_length.mean)
        if worker.held != worker.load.is_full:
            self._roster.hold(worker, held=not worker.held)

    # Time

    def next_wakeup(self) -> float | None:
        """When `tick` is due; None for never. May lie in the past: then it is due now."""
        times = [self._sync.next_ask_at(), self.policy.next_wakeup()]
        if self._expecting:
            times.append(self._expecting[0].expected_until)
        used_at = self._tree.next_use_at()
        if used_at is not None:
            times.append(max(used_at + self.window_seconds, self._swept_at + _SWEEP_SECONDS))
        due = min((at for at in times if at is not None), default=None)
        return None if due is None else max(due, self._now)

    def tick(self, *, now: float) -> list[Action]:
        """Do what is due, and say what to order."""
        if self._record is not None:
            self._record(now, None)
        self._now = now
        while self._expecting and self._expecting[0].expected_until <= now:
            self._withdraw(self._expecting[0])
        self._sweep(now)
        if (due := self.policy.next_wakeup()) is not None and due <= now:
            self.policy.tick(now=now)
        return self._sync.asks(now=now)

    def _sweep(self, now: float) -> None:
        if now < self._swept_at + _SWEEP_SECONDS:
            return
        before = now - self.window_seconds
        self._tree.expire_uses(before=before, limit=_SWEEP_USES)
        used_at = self._tree.next_use_at()
        if used_at is None or used_at > before:
            self._swept_at = now

    # Views

    def workers(self) -> list[WorkerView]:
        """Every linked worker, in the order of their ids."""
        workers = sorted(self._roster, key=lambda worker: worker.spec.worker_id)
        return [worker.view(self._tree) for worker in workers]

    def tree_summary(self) -> TreeSummary:
        return TreeSummary(self._tree.num_nodes, self._tree.num_pages, len(self._bookings))

    def check(self) -> None:
        """Assert that tree, books and table agree; cost grows with the tree, for tests."""
        self._tree.check()
        self._host_tree.check()
        self._roster.check()
        for worker in self._roster:
            live = [b for b in self._bookings.values() if b.slot == worker.slot]
            worker.load.check(live)
            assert self._sync.is_asking(worker) == (not worker.feed.is_synced)
        self.admission.queues.check(self._bookings.values())
        self._tree.check_expected(
            [(b.slot, b.path_end) for b in self._bookings.values() if b.path_end is not None]
        )
