"""Moves the pages of requests that wait by how long they will, where the policy estimates that."""

from preble_worker.host_tier import HostTier
from preble_worker.policies import LocalPolicy, WaitEstimator
from preble_worker.running import Running
from preble_worker.waiting import WaitingQueue

FETCH_MARGIN = 1.2
"""Times what a request's pages take to come in: who will start within that is sent for (ALISE)."""

GROWTH_PAGES = 2
"""Left for each request that runs, or what is brought in would be given back at once."""


class SwapAhead:
    """Out when the wait is longer than the way out and in; in a little ahead of the start.

    What is brought in waits in pages of its own. They go back as soon as a request that runs, or
    whose turn it is, lacks them.
    """

    def __init__(
        self,
        policy: WaitEstimator,
        host: HostTier,
        waiting: WaitingQueue,
        running: Running,
    ) -> None:
        host.estimated_wait = policy.estimated_wait
        self._host = host
        self._waiting = waiting
        self._running = running

    def review(self, *, now: float) -> None:
        """After all were started that could be."""
        host, wait = self._host, self._host.estimated_wait
        for sequence in [s for s in host.resident if wait(s) > host.round_trip_seconds(s)]:
            self._waiting.refresh(sequence)
            host.save_waiting(sequence, now=now)
        for sequence in sorted(host.away, key=wait):
            self._waiting.refresh(sequence)
            if host.is_coming(sequence):
                continue
            num_pages = host.num_to_fetch(sequence)
            if not num_pages or wait(sequence) > FETCH_MARGIN * host.copy_seconds(num_pages):
                continue
            spare = GROWTH_PAGES * len(self._running)
            if not host.fetch(sequence, num_pages, spare=spare, now=now):
                return


def make_swap_ahead(
    policy: LocalPolicy,
    host: HostTier | None,
    waiting: WaitingQueue,
    running: Running,
) -> SwapAhead | None:
    """None without a host tier, and for a policy that estimates no waits."""
    if host is None or not isinstance(policy, WaitEstimator):
        return None
    return SwapAhead(policy, host, waiting, running)
