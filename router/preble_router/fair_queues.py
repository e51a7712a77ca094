"""How much of a worker's queue a request of some tenant waits for, where workers share fairly among
tenants: of each other tenant's, as much as its own has before it.
"""

from collections.abc import Iterable

import numpy as np

from preble_router.booking import Booking
from preble_router.worker_table import Column, WorkerTable

_Lane = dict[int, dict[str, int]]


class FairQueues:
    """Uncached prompt tokens of the router's own bookings before their first token."""

    def __init__(self) -> None:
        self._tokens: dict[int, _Lane] = {}  # by priority, by slot, by tenant, never 0

    def add(self, booking: Booking) -> None:
        lane = self._tokens.setdefault(booking.priority, {})
        tenants = lane.setdefault(booking.slot, {})
        tenants[booking.tenant] = tenants.get(booking.tenant, 0) + booking.prefill_tokens

    def remove(self, booking: Booking) -> None:
        """It has its first token, or ended without."""
        lane = self._tokens[booking.priority]
        tenants = lane[booking.slot]
        tenants[booking.tenant] -= booking.prefill_tokens
        if not tenants[booking.tenant]:
            del tenants[booking.tenant]
        if not tenants:
            del lane[booking.slot]
        if not lane:
            del self._tokens[booking.priority]

    def wait_seconds(self, table: WorkerTable, *, priority: int, tenant: str) -> Column:
        """Until a prefill of `tenant` placed now would start, per slot: the share of the whole wait
        that is before it. What other routers have queued is taken to be the same mix."""
        share = np.ones(table.num_slots)
        for slot in {slot for lane in self._tokens.values() for slot in lane}:
            share[slot] = self._share_before(slot, priority, tenant)
        seconds: Column = table.wait_seconds * share
        return seconds

    def _share_before(self, slot: int, priority: int, tenant: str) -> float:
        total = before = 0
        for level, lane in self._tokens.items():
            tenants = lane.get(slot, {})
            queued = sum(tenants.values())
            total += queued
            if level > priority:
                before += queued
            elif level == priority and (own := tenants.get(tenant, 0)):
                before += sum(min(tokens, own) for tokens in tenants.values())
        return before / total

    def check(self, live: Iterable[Booking]) -> None:
        """Assert that it is the sum over the `live` bookings that have no token yet."""
        again = FairQueues()
        for booking in live:
            if not booking.is_decoding:
                again.add(booking)
        assert again._tokens == self._tokens
