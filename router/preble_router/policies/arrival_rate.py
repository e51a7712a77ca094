"""How many requests come per second, the last half minute weighing most."""

import math

MEMORY_SECONDS = 30.0
_SHARE_MIN = 0.05
"""Of a full memory; with less, the first requests would look like a flood."""


class ArrivalRate:
    """An exponentially decayed count, corrected for how short its memory still is."""

    def __init__(self) -> None:
        self._count = 0.0
        self._at = 0.0
        self._began_at = math.inf

    def count(self, now: float) -> None:
        """A request came."""
        if now < self._began_at:
            self._began_at = self._at = now
        self._count = self._count * math.exp((self._at - now) / MEMORY_SECONDS) + 1.0
        self._at = now

    def per_second(self, now: float) -> float:
        """Requests per second of late; 0 before the first."""
        if now < self._began_at:
            return 0.0
        kept = math.exp((self._at - now) / MEMORY_SECONDS)
        full = 1.0 - math.exp((self._began_at - now) / MEMORY_SECONDS)
        return self._count * kept / (MEMORY_SECONDS * max(full, _SHARE_MIN))
