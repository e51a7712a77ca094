"""How many repeated placements a router allows itself, so that a dying cluster is not stormed.

The first new placement of a request is free: one failure must lose nothing, however many requests
it breaks. Whoever breaks off again spends from a budget: a share of the requests that came lately,
and a few in any case. So the workers get at most (2 + share) times the requests that came.
"""

from math import exp

SHARE = 0.2
LEAST = 10.0
MEMORY_SECONDS = 10.0
"""Requests and retries are forgotten with this time constant."""


class RetryBudget:
    """Decaying counts of requests and of what was spent.

    Attributes:
        refused_total: retries that were not allowed.
    """

    def __init__(self) -> None:
        self.refused_total = 0
        self._requests = 0.0
        self._spent = 0.0
        self._counted_at = 0.0

    def count_request(self, *, now: float) -> None:
        """A new request was accepted."""
        self._fade(now)
        self._requests += 1.0

    def allows(self, *, num_failures: int, now: float) -> bool:
        """Whether a request that broke off `num_failures` times may be placed again."""
        if num_failures < 2:
            return True
        self._fade(now)
        if self._spent + 1.0 <= LEAST + SHARE * self._requests:
            return True
        self.refused_total += 1
        return False

    def count_retry(self, *, num_failures: int, now: float) -> None:
        """It was placed again."""
        if num_failures >= 2:
            self._fade(now)
            self._spent += 1.0

    def _fade(self, now: float) -> None:
        keep = exp(min(self._counted_at - now, 0.0) / MEMORY_SECONDS)
        self._requests *= keep
        self._spent *= keep
        self._counted_at = now
