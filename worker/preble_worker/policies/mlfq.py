"""A multi-level feedback queue that knows prompts only (FastServe, arXiv 2305.05920)."""

from collections.abc import Sequence
from dataclasses import dataclass

from preble_worker.policies.outlook import Outlook
from preble_worker.policies.policy import WIDE_WINDOW, C, Candidate, PolicyOptions

NUM_LEVELS = 8
FIRST_QUANTUM_SECONDS = 0.1
"""Of the first level; each further one has twice as much."""
LOST_SHARE = 0.2
"""Of the worker's time, at most, that goes into computing again what was preempted."""


@dataclass(slots=True)
class Standing:
    """Of one request.

    Attributes:
        level: 0 is served first.
        turn: place among those of its level, the least is next.
        quantum: of which level it has the quantum; the same but for who was starving, lest it
            sinks down from the top again, a little at a time and recomputed every time.
        generated_before: tokens it had when its quantum began.
        started_with: tokens it had when it last started.
    """

    level: int
    turn: int
    quantum: int
    generated_before: int
    started_with: int


class Mlfq:
    """Lowest level first, in turn within a level.

    A request skips the levels whose quantum is shorter than its prefill, which is not interrupted
    by its own quantum: only what it generates uses that up. Then it sinks a level, and to the end
    of it; on the last level it goes to the end again.

    Not as published: who runs makes no room before it has been served long enough for its return to
    cost no more than a fifth of that and of the service together. Without a host tier to swap to, a
    return is a whole prefill; where more is wanted than fits, every quantum would pay for one, and
    the worker would do little else. With that tier nothing is spared.

    Bound: who waited `age_escape_seconds` since it last ran returns to the first level, behind
    those that are there, with the quantum of the level it comes from.
    """

    window = WIDE_WINDOW
    bounds_waits = True

    def __init__(self, options: PolicyOptions) -> None:
        self._outlook = Outlook(options)
        self._starvation_seconds = options.age_escape_seconds
        self._num_turns = 0

    def order(self, candidates: Sequence[C], *, now: float) -> list[C]:
        return sorted(candidates, key=self._rank)

    def started(self, candidate: Candidate) -> None:
        self.standing(candidate).started_with = candidate.num_generated

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        pass

    def observe(self, waiting: Sequence[C], running: Sequence[C], *, now: float) -> None:
        """Let those sink that used their quantum up, and those rise that starve."""
        for candidate in running:
            self._sink(candidate)
        for candidate in waiting:
            is_starving = now - candidate.waiting_since >= self._starvation_seconds
            if is_starving and self.standing(candidate).level:
                self._enter(candidate, 0, quantum=self.standing(candidate).quantum)

    def dispensable(self, running: Sequence[C], *, now: float) -> list[C]:
        at_once = len(running)
        paid = [candidate for candidate in running if self._has_paid(candidate, at_once)]
        return sorted(paid, key=self._rank, reverse=True)

    def outranks(self, waiting: Candidate, running: Candidate, *, now: float) -> bool:
        return self._rank(waiting) < self._rank(running)

    def _has_paid(self, candidate: Candidate, at_once: int) -> bool:
        """Whether it was served long enough since it started for its return not to matter."""
        num_served = candidate.num_generated - self.standing(candidate).started_with
        lost = self._outlook.return_seconds(candidate.num_tokens + num_served)
        served = num_served * self._outlook.share_seconds(candidate, at_once)
        return lost <= LOST_SHARE * (lost + served)

    def standing(self, candidate: Candidate) -> Standing:
        """Where `candidate` stands; a new one joins the first level whose quantum holds its
        prefill.
        """
        standing: Standing | None = candidate.standing
        if standing is not None:
            return standing
        prefill_seconds = self._outlook.prefill_seconds(candidate)
        level = 0
        while level < NUM_LEVELS - 1 and quantum_seconds(level) < prefill_seconds:
            level += 1
        return self._enter(candidate, level)

    def _sink(self, candidate: Candidate) -> None:
        """As many levels as it used quanta up since the last review."""
        standing = self.standing(candidate)
        num_served = candidate.num_generated - standing.generated_before
        left = num_served * self._outlook.token_seconds(candidate) - quantum_seconds(
            standing.quantum
        )
        if left < 0.0:
            return
        level = min(standing.quantum + 1, NUM_LEVELS - 1)
        while level < NUM_LEVELS - 1 and left >= quantum_seconds(level):
            left -= quantum_seconds(level)
            level += 1
        self._enter(candidate, level)

    def _enter(self, candidate: Candidate, level: int, *, quantum: int | None = None) -> Standing:
        self._num_turns += 1
        before: Standing | None = candidate.standing
        candidate.standing = standing = Standing(
            level=level,
            turn=self._num_turns,
            quantum=level if quantum is None else quantum,
            generated_before=candidate.num_generated,
            started_with=before.started_with if before else candidate.num_generated,
        )
        return standing

    def _rank(self, candidate: Candidate) -> tuple[int, int]:
        standing = self.standing(candidate)
        return standing.level, standing.turn


def quantum_seconds(level: int) -> float:
    """How long a request may generate on `level`."""
    return FIRST_QUANTUM_SECONDS * float(2**level)
