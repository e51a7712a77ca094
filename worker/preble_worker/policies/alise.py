"""Speculative scheduling by remaining time (ALISE, arXiv 2410.23537)."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp, inf

import numpy as np

from preble_worker.policies.outlook import Outlook
from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

NUM_LEVELS = 6
FIRST_LEVEL_SECONDS = 0.25
"""tau: level q is of what takes less than tau * 2**q, the last one of all else."""
PROMOTION_STRETCH = 3.0
"""Times its predicted seconds that a request waits for each level it rises."""
ROUNDING_SECONDS = 1e-6
"""So long before it rises a level is computed anew each time, so that it rises in the very step."""
HYSTERESIS = 0.7
"""Who waits must take less than this share of the time that the other one still takes."""


@dataclass(slots=True)
class Standing:
    """Of one request.

    Attributes:
        generated: tokens, when the following two were computed.
        remaining: seconds.
        level: by `remaining` alone.
        predicted: tokens of the whole output, when it was first seen.
        total: seconds predicted when it was first seen.
        estimated_wait: seconds until it starts, or would if it were preempted, as of the last
            review: the predicted time of the work ahead of it, or until it is promoted to the
            first level if that is sooner.
        waiting_level: while it waits, what it has risen included.
        level_until: when it rises again if it still waits then; in the past once it has started.
    """

    generated: int
    remaining: float
    level: int
    predicted: int
    total: float
    estimated_wait: float
    waiting_level: int = 0
    level_until: float = -inf


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
        levels = self._waiting_levels(candidates, now)
        if levels and min(levels) == max(levels):
            return list(candidates)
        by_level: list[list[C]] = [[] for _ in range(NUM_LEVELS)]
        for level, candidate in zip(levels, candidates, strict=True):
            by_level[level].append(candidate)
        return [candidate for same in by_level for candidate in same]

    def started(self, candidate: Candidate) -> None:
        standing: Standing | None = candidate.standing
        if standing is not None:
            standing.level_until = -inf

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        if finished:
            self.outlook.learn(candidate)

    def observe(self, waiting: Sequence[C], running: Sequence[C], *, now: float) -> None:
        """Estimate the waits: each waits until the first of those that run is done, and for those
        that wait before it, which share the batch. Of who runs, as if it were preempted.

        Without a host to swap to nobody asks.
        """
        if not self._can_swap:
            self._waiting_levels(waiting, now)
            return
        at_once = max(len(running), 1)
        ends = sorted(self.standing(candidate).remaining for candidate in running)
        ranks, ahead = [], 0.0
        work = [0.0]
        for candidate in self.order(waiting, now=now):
            self._estimate(candidate, _waited(candidate, now), ahead + sum(ends[:1]))
            ranks.append((self._waiting_level(candidate, now), candidate.arrived_at))
            ahead += self.standing(candidate).remaining / at_once
            work.append(ahead)
        for candidate in running:
            others = ends[1:] if self.standing(candidate).remaining == ends[0] else ends
            before = bisect(ranks, (self._running_level(candidate), candidate.arrived_at))
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
        self._look_at(running)
        standings: list[Standing] = [c.standing for c in running]
        keys = [
            (-_risen(s, c.waited_seconds), -s.remaining, index)
            for index, (c, s) in enumerate(zip(running, standings, strict=True))
        ]
        return [running[index] for _, _, index in sorted(keys)]

    def outranks(self, waiting: Candidate, running: Candidate, *, now: float) -> bool:
        return (
            self._waiting_level(waiting, now) < self._running_level(running)
            and self.standing(waiting).remaining < HYSTERESIS * self.standing(running).remaining
        )

    def standing(self, candidate: Candidate) -> Standing:
        """How `candidate` stands; the same until it has generated more."""
        standing: Standing | None = candidate.standing
        generated = candidate.num_generated
        if standing is None:
            predicted = self.outlook.prediction(candidate)
            standing = Standing(-1, 0.0, 0, predicted, self.outlook.total_seconds(candidate), 0.0)
            candidate.standing = standing
        if standing.generated != generated:
            standing.generated = generated
            standing.remaining = self.outlook.remaining_seconds(candidate)
            standing.level = level_of(standing.remaining)
        return standing

    def _look_at(self, running: Sequence[Candidate]) -> None:
        """`standing` of all at once; most have generated more since the last time."""
        changed = []
        for candidate in running:
            if candidate.standing is None:
                self.standing(candidate)
            elif candidate.standing.generated != candidate.num_generated:
                changed.append(candidate)
        standings: list[Standing] = [c.standing for c in changed]
        remaining = self.outlook.remaining_seconds_of(changed, [s.predicted for s in standings])
        levels = np.clip(np.frexp(remaining / FIRST_LEVEL_SECONDS)[1], 0, NUM_LEVELS - 1)
        for candidate, standing, seconds, level in zip(
            changed, standings, remaining.tolist(), levels.tolist(), strict=True
        ):
            standing.generated = candidate.num_generated
            standing.remaining = seconds
            standing.level = level

    def _running_level(self, candidate: Candidate) -> int:
        """One that runs keeps what it rose while it waited."""
        standing = self.standing(candidate)
        return _risen(standing, candidate.waited_seconds)

    def _waiting_levels(self, waiting: Sequence[Candidate], now: float) -> list[int]:
        """Of all that wait. They stay on a level for long, and are looked at in every step."""
        return [
            standing.waiting_level
            if (standing := candidate.standing) is not None and now < standing.level_until
            else self._waiting_level(candidate, now)
            for candidate in waiting
        ]

    def _waiting_level(self, candidate: Candidate, now: float) -> int:
        standing: Standing | None = candidate.standing
        if standing is not None and now < standing.level_until:
            return standing.waiting_level
        standing, waited = self.standing(candidate), _waited(candidate, now)
        standing.waiting_level = level = _risen(standing, waited)
        stretch = PROMOTION_STRETCH * standing.total
        next_rise = (int(waited / stretch) + 1) * stretch
        standing.level_until = now + next_rise - waited - ROUNDING_SECONDS if level else inf
        return level


def _risen(standing: Standing, waited: float) -> int:
    """Its level after it has waited for so many seconds in all."""
    level = standing.level - int(waited / (PROMOTION_STRETCH * standing.total))
    return level if level > 0 else 0


def _waited(candidate: Candidate, now: float) -> float:
    """Seconds in all of one that waits."""
    return candidate.waited_seconds + now - candidate.waiting_since
