"""First come, first served."""

from collections.abc import Iterable, Sequence

from preble_worker.policies.policy import C, Candidate


class Fcfs:
    """Oldest first."""

    def order(self, candidates: Sequence[C]) -> Iterable[C]:
        return candidates

    def started(self, candidate: Candidate) -> None:
        pass
