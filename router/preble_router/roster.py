"""Which workers there are, in which slot, and which of them may take a request now."""

from collections.abc import Iterator

import numpy as np

from preble.errors import NoWorkers
from preble_router.candidates import Slots
from preble_router.cluster_worker import ClusterWorker
from preble_router.stimuli import RouteRequest
from preble_router.worker_table import Column, WorkerTable


class Roster:
    """Linked workers by id and by slot.

    The slots open to any request are worked out when membership changes, not per request. A worker
    whose cache is not known yet is open only while no other worker is; and one that is held, only
    while all are.
    """

    def __init__(self, table: WorkerTable) -> None:
        self._table = table
        self._by_id: dict[str, ClusterWorker] = {}
        self._by_slot: dict[int, ClusterWorker] = {}
        self._free_slots: list[int] = []
        self._open: Slots = np.zeros(0, np.intp)
        self._barred: Column = np.zeros(0)
        self._least_context = 0

    def __iter__(self) -> Iterator[ClusterWorker]:
        return iter(self._by_id.values())

    def get(self, worker_id: str) -> ClusterWorker | None:
        return self._by_id.get(worker_id)

    def at(self, slot: int) -> ClusterWorker:
        """The worker in `slot`, which somebody has."""
        return self._by_slot[slot]

    @property
    def open_slots(self) -> Slots:
        """Those that may take requests, ascending."""
        return self._open

    def open_to(self, request: RouteRequest) -> tuple[Slots, Column]:
        """The slots that may take `request`, ascending, and 0 for those, infinity for the others.

        Raises:
            NoWorkers: there is none.
        """
        slots, barred = self._open, self._barred
        length = request.num_tokens + request.max_tokens
        if request.excluded or length > self._least_context:
            slots = self._narrow(request, length)
            barred = _bar_all_but(slots, len(barred))
        if not len(slots):
            raise NoWorkers(self._why_none(request))
        return slots, barred

    # Membership

    def free_slot(self) -> int | None:
        """A slot left by a lost worker."""
        return self._free_slots.pop() if self._free_slots else None

    def join(self, worker: ClusterWorker) -> None:
        self._by_id[worker.spec.worker_id] = worker
        self._by_slot[worker.slot] = worker
        self._table.worker_ids[worker.slot] = worker.spec.worker_id
        self.reopen()

    def leave(self, worker: ClusterWorker) -> None:
        del self._by_id[worker.spec.worker_id]
        del self._by_slot[worker.slot]
        self._table.worker_ids[worker.slot] = ""
        self._table.clear(worker.slot)
        self._free_slots.append(worker.slot)
        self.reopen()

    def suspend(self, worker_id: str, *, suspended: bool) -> None:
        worker = self._by_id.get(worker_id)
        if worker is not None and worker.suspended != suspended:
            worker.suspended = suspended
            self.reopen()

    def drain(self, worker_id: str) -> None:
        worker = self._by_id.get(worker_id)
        if worker is not None:
            worker.draining = True
            self.reopen()

    def hold(self, worker: ClusterWorker, *, held: bool) -> None:
        """Whether it may take no more for now, if others can."""
        worker.held = held
        self.reopen()

    def reopen(self) -> None:
        """Work out the open slots again, after something that decides them has changed."""
        self._open = _preferred(list(self._by_slot.values()))
        self._barred = _bar_all_but(self._open, self._table.num_slots)
        limits = [self._by_slot[slot].spec.context_tokens for slot in self._open.tolist()]
        self._least_context = min(limits, default=0)

    # Steps

    def _narrow(self, request: RouteRequest, length: int) -> Slots:
        """Without the excluded, and without those too small, unless all are: they will say so."""
        allowed = [w for w in self._by_slot.values() if w.spec.worker_id not in request.excluded]
        fitting = [w for w in allowed if length <= w.spec.context_tokens]
        slots = _preferred(fitting)
        return slots if len(slots) else _preferred(allowed)

    def _why_none(self, request: RouteRequest) -> str:
        workers = list(self._by_id.values())
        if not workers:
            return "no worker is linked"
        parts = [
            (sum(w.suspended for w in workers), "silent"),
            (sum(w.draining for w in workers), "draining"),
            (sum(w.spec.worker_id in request.excluded for w in workers), "excluded"),
        ]
        listed = ", ".join(f"{count} {what}" for count, what in parts if count)
        return f"none of {len(workers)} workers can take the request: {listed}"

    def check(self) -> None:
        """Assert that the indexes agree."""
        assert {w.slot for w in self._by_id.values()} == set(self._by_slot)
        assert not set(self._by_slot) & set(self._free_slots)
        assert len(self._by_slot) + len(self._free_slots) == self._table.num_slots
        assert self._table.live_total == self._table.num_live.sum()
        for slot, worker_id in enumerate(self._table.worker_ids):
            worker = self._by_slot.get(slot)
            assert worker_id == ("" if worker is None else worker.spec.worker_id)
        assert self._open.tolist() == _preferred(list(self._by_slot.values())).tolist()


def _preferred(workers: list[ClusterWorker]) -> Slots:
    """Slots of the open workers whose cache is known and that are not held, or else of all whose
    cache is known, or of all open ones; ascending."""
    able = [w for w in workers if w.is_open]
    known = [w for w in able if w.feed.has_view] or able
    free = [w for w in known if not w.held]
    return np.array(sorted(w.slot for w in free or known), dtype=np.intp)


def _bar_all_but(slots: Slots, num_slots: int) -> Column:
    barred = np.full(num_slots, np.inf)
    barred[slots] = 0.0
    return barred
