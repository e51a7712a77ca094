"""Speculative scheduling by remaining time (ALISE, arXiv 2410.23537)."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp, inf

from preble_worker.policies.outlook import Outlook
from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

NUM_LEVELS = 6
FIRST_LEVEL_SECONDS = 0.25
"""tau: level q is of what takes less than tau * 2**q, the last one of all else."""
PROMOTION_STRETCH = 3.0
"""Times its predicted seconds that a request waits for each level it rises."""
HYSTERESIS = 0.7
"""Who waits must take less than this share of the time that the other one still takes."""


@dataclass(slots=True)
class Standing:
    """Of one request.

    Attributes:
        generated: tokens, when the following two were computed.
        remaining: seconds.
        level: by `remaining` alone.
        total: seconds predicted when it was first seen.
        estimated_wait: seconds until it starts, or would if it were preempted, as of the last
            review: the predicted time of the work ahead of it, or until it is promoted to the
            first level if that is sooner.
    """

    generated: int
    remaining: float
    level: int
    total: float
    estimated_wait: float


def level_of(remaining: float) -> int:
    """0 for what takes less than tau seconds, then one for each doubling."""
    exponent = frexp(remaining / FIRST_LEVEL_SECONDS)[1]
    return 0 if exponent < 0 else exponent if exponent < NUM_LEVELS else NUM_LEVELS - 1


class Alise:
    """Lowest level first, oldest first within a level.

    Bound: a request rises a level for every 3 times its predicted time that it has waited, and
    keeps what it rose. After at most 15 times it stands on the first level, before all who came
    later.
    """

    window = WIDE_WINDOW
    bounds_waits = True

    def __init__(self, options: PolicyOptions) -> None:
        self.outlook = Outlook(options)
        self._can_swap = options.swap_token_seconds < inf

    def order(self, candidates: Sequence[C], *, now: float) -> list[C]:
        return sorted(candidates, key=lambda c: self._rank(c, _waited(c, now)))

    def started(self, candidate: Candidate) -> None:
        pass

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        if finished:
            self.outlook.learn(candidate)

    def observe(self, waiting: Sequence[C], running: Sequence[C], *, now: float) -> None:
        """Estimate the waits: each waits until the first of those that run is done, and for those
        that wait before it, which share the batch. Of who runs, as if it were preempted.

        Without a host to swap to nobody asks.
        """
        if not self._can_swap:
            for candidate in waiting:
                self.standing(candidate)
            return
        at_once = max(len(running), 1)
        ends = sorted(self.standing(candidate).remaining for candidate in running)
        ranks, ahead = [], 0.0
        work = [0.0]
        for candidate in self.order(waiting, now=now):
            self._estimate(candidate, _waited(candidate, now), ahead + sum(ends[:1]))
            ranks.append(self._rank(candidate, _waited(candidate, now)))
            ahead += self.standing(candidate).remaining / at_once
            work.append(ahead)
        for candidate in running:
            others = ends[1:] if self.standing(candidate).remaining == ends[0] else ends
            before = bisect(ranks, self._rank(candidate, candidate.waited_seconds))
            self._estimate(candidate, candidate.waited_seconds, work[before] + sum(others[:1]))

    def _estimate(self, candidate: Candidate, waited: float, work_ahead: float) -> None:
        standing = self.standing(candidate)
        until_first = PROMOTION_STRETCH * standing.total * standing.level - waited
        standing.estimated_wait = min(work_ahead, max(until_first, 0.0))

    def estimated_wait(self, candidate: Candidate) -> float:
        """EWT in seconds, by which its cache is moved out or back in."""
        return self.standing(candidate).estimated_wait

    def dispensable(self, running: Sequence[C], *, now: float) -> list[C]:
        """Highest level first, within it who takes longest."""
        return sorted(
            running,
            key=lambda c: (-self._level(c, c.waited_seconds), -self.standing(c).remaining),
        )

    def outranks(self, waiting: Candidate, running: Candidate, *, now: float) -> bool:
        return (
            self._level(waiting, _waited(waiting, now))
            < self._level(running, running.waited_seconds)
            and self.standing(waiting).remaining < HYSTERESIS * self.standing(running).remaining
        )

    def standing(self, candidate: Candidate) -> Standing:
        """How `candidate` stands; the same until it has generated more."""
        standing: Standing | None = candidate.standing
        generated = candidate.num_generated
        if standing is None:
            standing = Standing(-1, 0.0, 0, self.outlook.total_seconds(candidate), 0.0)
            candidate.standing = standing
        if standing.generated != generated:
            standing.generated = generated
            standing.remaining = self.outlook.remaining_seconds(candidate)
            standing.level = level_of(standing.remaining)
        return standing

    def _level(self, candidate: Candidate, waited: float) -> int:
        standing = self.standing(candidate)
        level = standing.level - int(waited / (PROMOTION_STRETCH * standing.total))
        return level if level > 0 else 0

    def _rank(self, candidate: Candidate, waited: float) -> tuple[int, float]:
        return self._level(candidate, waited), candidate.arrived_at


def _waited(candidate: Candidate, now: float) -> float:
    """Seconds in all of one that waits."""
    return candidate.waited_seconds + now - candidate.waiting_since
