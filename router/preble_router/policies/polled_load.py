"""What a router sees of queues and memory that asks its workers now and then."""

import numpy as np

from preble_router.worker_table import Column, WorkerTable


class PolledLoad:
    """Queue lengths and KV use as of the last poll, of every slot.

    Between polls nothing changes, whatever the router places. While nothing is in flight and the
    last poll showed nothing, it polls no more.
    """

    def __init__(self, table: WorkerTable, *, every_seconds: float) -> None:
        self._table = table
        self._every_seconds = every_seconds
        self._next_at: float | None = None
        self.waiting: Column = np.zeros(0)
        self.kv_use: Column = np.zeros(0)

    def clear(self, slot: int) -> None:
        """Another worker has `slot`, or none."""
        if slot == len(self.waiting):
            self.waiting = np.append(self.waiting, 0.0)
            self.kv_use = np.append(self.kv_use, 0.0)
        self.waiting[slot] = self.kv_use[slot] = 0.0

    def placed(self, *, now: float) -> None:
        """There is something to watch again."""
        if self._next_at is None:
            self._next_at = now + self._every_seconds

    def next_wakeup(self) -> float | None:
        return self._next_at

    def tick(self, *, now: float) -> None:
        """Poll."""
        for slot, report in enumerate(self._table.reports):
            pages = report.free_pages + report.cached_pages + report.used_pages
            self.waiting[slot] = report.num_waiting
            self.kv_use[slot] = report.used_pages / pages if pages else 0.0
        busy = self._table.num_live.any() or self.waiting.any() or self.kv_use.any()
        self._next_at = now + self._every_seconds if busy else None
