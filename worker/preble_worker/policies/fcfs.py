"""First come, first served."""

from collections.abc import Iterable, Sequence

from preble_worker.policies.policy import WINDOW, C, Candidate


class Fcfs:
    """Oldest first, so that nobody is ever overtaken."""

    window = WINDOW
    bounds_waits = False

    def order(self, candidates: Sequence[C], *, now: float) -> Iterable[C]:
        return candidates

    def started(self, candidate: Candidate) -> None:
        pass

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        pass
