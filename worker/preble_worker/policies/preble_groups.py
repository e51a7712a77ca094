"""Groups by hit ratio, served in proportion, as in the Preble paper (arXiv 2407.00023, §3.3)."""

from collections import deque
from collections.abc import Iterator, Sequence
from math import lcm

from preble_worker.policies.policy import WINDOW, C, Candidate

NUM_GROUPS = 10
_STRIDES = [lcm(*range(1, NUM_GROUPS + 1)) // (group + 1) for group in range(NUM_GROUPS)]


def group_of(candidate: Candidate) -> int:
    """0 for a request with nothing cached, up to 9 for one that is at least 90 % cached.

    The last token of a request is never served from cache, so there is no tenth.
    """
    return NUM_GROUPS * candidate.cached_tokens // candidate.num_tokens


class PrebleGroups:
    """From group g take in proportion g + 1, that is 10:9:…:1, and oldest first inside a group.

    Well cached requests go first, yet no group starves. The proportion holds within a batch of 55
    and also over many small ones: each group has a clock that a request from group g advances by
    1/(g + 1), and the group whose clock is furthest behind is next (stride scheduling). Groups are
    formed anew for every batch, from what is cached then.

    Bound: the queue's age escape; from then on nobody overtakes.
    """

    window = WINDOW
    bounds_waits = False

    def __init__(self) -> None:
        self._clocks = [0] * NUM_GROUPS
        self._time = 0

    def order(self, candidates: Sequence[C], *, now: float) -> Iterator[C]:
        groups: list[deque[C]] = [deque() for _ in range(NUM_GROUPS)]
        for candidate in candidates:  # As `group_of` says: this is done for all in every step.
            groups[NUM_GROUPS * candidate.cached_tokens // candidate.num_tokens].append(candidate)
        clocks = {g: self._clock(g) for g in reversed(range(NUM_GROUPS)) if groups[g]}
        while clocks:
            group = min(clocks, key=clocks.__getitem__)
            yield groups[group].popleft()
            clocks[group] += _STRIDES[group]
            if not groups[group]:
                del clocks[group]

    def started(self, candidate: Candidate) -> None:
        group = group_of(candidate)
        self._time = max(self._time, self._clock(group))
        self._clocks[group] = self._clock(group) + _STRIDES[group]

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        pass

    def _clock(self, group: int) -> int:
        """A group that had no requests for a while gains no credit from it."""
        return max(self._clocks[group], self._time)
