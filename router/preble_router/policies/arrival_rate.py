"""How many requests come per second and what they cost, the last half minute weighing most."""

import math

MEMORY_SECONDS = 30.0
_SHARE_MIN = 0.05
"""Of a full memory; with less, the first requests would look like a flood."""


class ArrivalRate:
    """Exponentially decayed sums, corrected for how short their memory still is."""

    def __init__(self) -> None:
        self._count = 0.0
        self._seconds = 0.0
        self._at = 0.0
        self._began_at = math.inf

    def count(self, now: float, seconds: float) -> None:
        """A request came that needs so many seconds of some worker."""
        if now < self._began_at:
            self._began_at = self._at = now
        kept = math.exp((self._at - now) / MEMORY_SECONDS)
        self._count = self._count * kept + 1.0
        self._seconds = self._seconds * kept + seconds
        self._at = now

    def per_second(self, now: float) -> tuple[float, float]:
        """Requests per second of late, and the seconds they need; 0 before the first."""
        if now < self._began_at:
            return 0.0, 0.0
        kept = math.exp((self._at - now) / MEMORY_SECONDS)
        full = 1.0 - math.exp((self._began_at - now) / MEMORY_SECONDS)
        scale = kept / (MEMORY_SECONDS * max(full, _SHARE_MIN))
        return self._count * scale, self._seconds * scale
