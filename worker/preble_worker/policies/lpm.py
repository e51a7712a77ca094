"""Longest prefix match, as SGLang names it."""

from collections.abc import Iterable, Sequence

from preble_worker.policies.policy import WINDOW, C, Candidate


class Lpm:
    """Most cached tokens first, oldest first among equals.

    It saves the most recomputation, because what is cached is used before it is evicted, and
    serves requests that share nothing last. Bound: the queue's age escape; from then on nobody
    overtakes.
    """

    window = WINDOW
    bounds_waits = False

    def order(self, candidates: Sequence[C], *, now: float) -> Iterable[C]:
        return sorted(candidates, key=lambda candidate: -candidate.cached_tokens)

    def started(self, candidate: Candidate) -> None:
        pass

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        pass
