"""Shortest predicted remaining output first, with limited preemption (TRAIL, arXiv 2410.01035)."""

from collections.abc import Sequence
from dataclasses import dataclass

from preble_worker.policies.outlook import Outlook
from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

LIMIT = 0.8
"""c: who generated more than this share of the first prediction runs to the end, because its pages
were dear and it is nearly done."""
HYSTERESIS = 0.8
"""Who waits must have less left than this share of what the other one has."""
STRETCH = 10.0
"""Times its predicted seconds: who waited longer, and for long, is overdue."""


@dataclass(slots=True)
class Standing:
    """Of one request: what is left, as of so many generated tokens."""

    generated: int
    remaining: float
    overdue_after: float


class Srpt:
    """Least predicted remaining first.

    Bound: a request that waited `age_escape_seconds` and 10 times what it was predicted to take is
    overdue: overdue ones come first, oldest first, so from then on nobody overtakes it, and what
    is overdue and runs is not preempted.
    """

    window = WIDE_WINDOW
    bounds_waits = True

    def __init__(self, options: PolicyOptions) -> None:
        self.outlook = Outlook(options)
        self._age_escape_seconds = options.age_escape_seconds

    def order(self, candidates: Sequence[C], *, now: float) -> list[C]:
        return sorted(candidates, key=lambda candidate: self._rank(candidate, now))

    def started(self, candidate: Candidate) -> None:
        pass

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        if finished:
            self.outlook.learn(candidate)

    def observe(self, waiting: Sequence[C], running: Sequence[C], *, now: float) -> None:
        pass

    def dispensable(self, running: Sequence[C], *, now: float) -> list[C]:
        """Most remaining first, without those that are overdue or past the limit."""
        prediction = self.outlook.prediction
        open_to = [
            candidate
            for candidate in running
            if candidate.num_generated <= LIMIT * prediction(candidate)
            and candidate.waited_seconds < self.standing(candidate).overdue_after
        ]
        return sorted(open_to, key=lambda c: (-self.standing(c).remaining, -c.arrived_at))

    def outranks(self, waiting: Candidate, running: Candidate, *, now: float) -> bool:
        left, right = self.standing(waiting), self.standing(running)
        return left.remaining < HYSTERESIS * right.remaining

    def standing(self, candidate: Candidate) -> Standing:
        """What is left of `candidate`; the same until it has generated more."""
        standing: Standing | None = candidate.standing
        generated = candidate.num_generated
        if standing is None:
            overdue_after = max(
                self._age_escape_seconds, STRETCH * self.outlook.total_seconds(candidate)
            )
            standing = Standing(-1, 0.0, overdue_after)
            candidate.standing = standing
        if standing.generated != generated:
            standing.generated = generated
            standing.remaining = self.outlook.remaining_tokens(candidate)
        return standing

    def _rank(self, candidate: Candidate, now: float) -> tuple[float, float]:
        standing = self.standing(candidate)
        waited = candidate.waited_seconds + now - candidate.waiting_since
        if waited >= standing.overdue_after:
            return -1.0, candidate.arrived_at
        return standing.remaining, candidate.arrived_at
