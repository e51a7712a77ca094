"""How much of a worker's queue a request of some priority waits for: workers start higher ones
first, so what is lower is behind it, even if it came before.
"""

from collections.abc import Iterable

import numpy as np

from preble_router.booking import Booking
from preble_router.worker_table import Column, WorkerTable


class PriorityQueues:
    """Uncached prompt tokens of the router's own bookings before their first token."""

    def __init__(self) -> None:
        self._tokens: dict[int, dict[int, int]] = {}  # by priority, by slot, never 0

    def add(self, booking: Booking) -> None:
        lane = self._tokens.setdefault(booking.priority, {})
        lane[booking.slot] = lane.get(booking.slot, 0) + booking.prefill_tokens

    def remove(self, booking: Booking) -> None:
        """It has its first token, or ended without."""
        lane = self._tokens[booking.priority]
        lane[booking.slot] -= booking.prefill_tokens
        if not lane[booking.slot]:
            del lane[booking.slot]
        if not lane:
            del self._tokens[booking.priority]

    def wait_seconds(self, table: WorkerTable, *, priority: int, tenant: str = "") -> Column:
        """Until a prefill of `priority` placed now would start, whoever the `tenant`, per slot: the
        share of the whole wait that is not behind it. What other routers have queued is taken to be
        the same mix."""
        lower = [lane for level, lane in self._tokens.items() if level < priority]
        if not lower:
            return table.wait_seconds
        share = np.ones(table.num_slots)
        for slot in {slot for lane in lower for slot in lane}:
            total = sum(lane.get(slot, 0) for lane in self._tokens.values())
            share[slot] -= sum(lane.get(slot, 0) for lane in lower) / total
        seconds: Column = table.wait_seconds * share
        return seconds

    def check(self, live: Iterable[Booking]) -> None:
        """Assert that it is the sum over the `live` bookings that have no token yet."""
        again = PriorityQueues()
        for booking in live:
            if not booking.is_decoding:
                again.add(booking)
        assert again._tokens == self._tokens
