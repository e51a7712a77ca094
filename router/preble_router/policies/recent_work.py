"""How much work each worker was given lately, an old second counting less than a new one."""

import math

import numpy as np

from preble_router.candidates import Slots
from preble_router.worker_table import Column

MEMORY_SECONDS = 60.0
"""Work given so long ago counts 1/e."""
_EXPONENT_MAX = 50.0
_FEW_SLOTS = 32
"""Up to so many, one loop is faster than NumPy: three times at four."""


class RecentWork:
    """Decayed seconds of work per slot.

    Instead of all old work shrinking with time, new work is entered larger by as much; only
    comparisons between slots mean anything. The scale starts over before it overflows.
    """

    def __init__(self) -> None:
        self._work: Column = np.zeros(0)
        self._since = 0.0

    def reset(self, slot: int) -> None:
        """Another worker has `slot` now."""
        if slot == len(self._work):
            self._work = np.append(self._work, 0.0)
        self._work[slot] = 0.0

    def add(self, slot: int, seconds: float, *, now: float) -> None:
        exponent = (now - self._since) / MEMORY_SECONDS
        if exponent > _EXPONENT_MAX:
            self._work *= math.exp(-exponent)
            self._since, exponent = now, 0.0
        self._work[slot] += seconds * math.exp(exponent)

    def least(self, slots: Slots, cached: Column) -> list[int]:
        """Of `slots`, those with most `cached`, and of these those that were given least."""
        if len(slots) > _FEW_SLOTS:
            slots = slots[cached[slots] == cached[slots].max()]
            slots = slots[self._work[slots] == self._work[slots].min()]
            return list(map(int, slots))
        cached_of, work_of = cached.item, self._work.item
        best: list[int] = []
        most, least = -math.inf, math.inf
        for slot in slots.tolist():
            tokens, work = cached_of(slot), work_of(slot)
            if tokens > most or (tokens == most and work < least):
                best, most, least = [slot], tokens, work
            elif tokens == most and work == least:
                best.append(slot)
        return best
