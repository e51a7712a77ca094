"""Which running requests make room for better ones that wait, where the policy knows such."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from preble_worker.config import SchedulerConfig
from preble_worker.page_cache import PageCache
from preble_worker.planning import Planning
from preble_worker.policies import (
    ClassedPolicy,
    LocalPolicy,
    OvertakingPolicy,
    RunningPolicy,
    WaitEstimator,
)
from preble_worker.policies.adaptive import Adaptive
from preble_worker.running import Running
from preble_worker.sequence import Sequence, newest_of_lowest_priority
from preble_worker.slots import Slots
from preble_worker.waiting import WaitingQueue

REVIEW_STEPS = 4
"""Steps between two reviews while requests wait, if none comes."""


class Preemption:
    """Looks at who waits and who runs, every few steps, and says who is to be taken out.

    Nobody is taken out unless somebody better then fits and finds tokens left in the budget of the
    step, and nobody makes room for a request of lower priority.

    Attributes:
        review_at_step: the batch after which the next review is due.
        prompt_tokens: how many a step computes at most, besides the decodes.
    """

    def __init__(
        self,
        policy: RunningPolicy,
        waiting: WaitingQueue,
        running: Running,
        cache: PageCache,
        config: SchedulerConfig,
    ) -> None:
        self.review_at_step = 0
        self.prompt_tokens = config.max_batch_tokens
        self._policy = policy
        self._overtaking = policy if isinstance(policy, OvertakingPolicy) else None
        self._classed = policy if isinstance(policy, ClassedPolicy) else None
        self._waiting = waiting
        self._running = running
        self._cache = cache
        self._max_running = config.max_running
        self._max_batch_tokens = config.max_batch_tokens

    def review(self, *, step: int, now: float) -> list[Sequence]:
        """Whom to preempt, if a review is due and anybody waits; then also let the policy note
        how far all are.
        """
        if step < self.review_at_step or not len(self._waiting):
            return []
        self.review_at_step = step + REVIEW_STEPS
        waiting, running = self._waiting.window(), self._preemptible()
        self._policy.observe(waiting, running, now=now)
        if self._classed and not self._classed.outrank_any(waiting, running):
            return []
        return self._make_room(running, step, now) if running else []

    def for_growth(self, *, now: float) -> Sequence:
        """Whom to preempt because those who run have grown out of the pages: of the lowest
        priority whom the policy can spare best, else the newest.
        """
        newest = newest_of_lowest_priority(iter(self._running))
        running = self._preemptible()
        if isinstance(self._policy, WaitEstimator):
            self._policy.observe(self._waiting.window(), running, now=now)
        dispensable: Iterable[Sequence] = self._policy.dispensable(running, now=now)
        lowest = (s for s in dispensable if s.priority == newest.priority)
        return next(lowest, newest)

    def overtaking(
        self, budget: int, *, step: int, now: float
    ) -> Iterator[tuple[Sequence, list[Sequence]]]:
        """Who is to start before prompts that have begun, which would leave too little of the
        `budget` of tokens, and before which; one after the other, for the caller to start.
        """
        prefills = self._running.prefills
        if not (self._overtaking and len(prefills) and len(self._waiting)):
            return
        if len(self._running) >= self._max_running:
            return
        for sequence in self._waiting.in_turn(now=now):
            self._waiting.refresh(sequence)
            behind = self._behind(sequence)
            left = budget - prefills.num_missing
            if not behind or left >= sequence.num_missing or left + _missing(behind) <= 0:
                return
            if not self._running.should_follow(sequence, step=step):
                yield sequence, behind
            if len(self._running) >= self._max_running:
                return

    def _behind(self, sequence: Sequence) -> list[Sequence]:
        """The prompts that have begun before which `sequence` may go."""
        if self._overtaking is None or sequence.is_lost:
            return []
        overtakes = self._overtaking.overtakes
        begun, level = self._running.prefills.sequences, sequence.priority
        return [other for other in begun if other.priority <= level and overtakes(sequence, other)]

    def _preemptible(self) -> list[Sequence]:
        """All that run, but for those whose pages are just on their way in."""
        self._running.decodes.note_generated()
        return [*self._running.decodes.sequences, *self._running.prefills.sequences]

    def _make_room(self, running: list[Sequence], step: int, now: float) -> list[Sequence]:
        """Go through those who wait as they will be started, with victims where they lack room.

        Only then is the policy asked whom it can spare, since it has to look at all that run.
        """
        victims: list[Sequence] = []
        dispensable: list[Sequence] | None = None
        prefills = self._running.prefills
        budget = self._max_batch_tokens - len(self._running.decodes) - prefills.num_missing
        room = _Room(self._max_running - len(self._running), self._cache.num_available)
        for sequence in self._waiting.in_turn(now=now):
            tokens = budget + _missing(self._behind(sequence))
            if tokens <= 0:
                break
            if self._running.should_follow(sequence, step=step):
                continue
            wanted = self._wanted_pages(sequence)
            if not self._has_room(room, wanted):
                if dispensable is None:
                    dispensable = self._policy.dispensable(running, now=now)
                    dispensable.sort(key=lambda s: s.priority)
                found = self._victims_for(sequence, wanted, room, dispensable, now)
                if found is None:
                    break
                victims += found
                dispensable = [s for s in dispensable if s not in found]
            room.num_slots -= 1
            room.num_pages -= wanted
            budget -= sequence.num_missing
        return victims

    def _victims_for(
        self,
        sequence: Sequence,
        wanted: int,
        room: "_Room",
        dispensable: list[Sequence],
        now: float,
    ) -> list[Sequence] | None:
        """Who has to go for `sequence` to start, whose room is then free; None if it cannot."""
        victims: list[Sequence] = []
        after = _Room(room.num_slots, room.num_pages)
        candidates = iter(dispensable)
        while not self._has_room(after, wanted):
            victim = next(candidates, None)
            if victim is None or victim.priority > sequence.priority:
                return None
            if self._policy.outranks(sequence, victim, now=now):
                victims.append(victim)
                after.num_slots += 1
                after.num_pages += self._freed_pages(victim)
        room.num_slots, room.num_pages = after.num_slots, after.num_pages
        return victims

    def _has_room(self, room: "_Room", wanted: int) -> bool:
        """For one more that takes `wanted` pages; each that runs keeps one to grow into."""
        return room.num_slots >= 1 and room.num_pages >= wanted + self._max_running - room.num_slots

    def _wanted_pages(self, sequence: Sequence) -> int:
        """Available pages that `sequence` takes when it starts."""
        num_pages = -(-sequence.num_tokens // self._cache.page_tokens)
        prefix = sequence.prefix
        num_used = self._cache.num_used_of(prefix.node) if self._cache.sharing else 0
        num_fetched = len(sequence.fetched.pages) if sequence.fetched else 0
        return num_pages - num_fetched - min(prefix.num_pages, num_used)

    def _freed_pages(self, sequence: Sequence) -> int:
        """Pages that nobody uses any more when `sequence` stops, those of the tree included."""
        assert sequence.node is not None
        return sequence.num_pages - self._cache.num_used_by_others(sequence.node)


Reviews = Preemption | Planning
"""Both say in reviews who is to be taken out, and who where pages are short."""


def make_preemption(
    policy: LocalPolicy,
    config: SchedulerConfig,
    waiting: WaitingQueue,
    running: Running,
    cache: PageCache,
    slots: Slots,
) -> Reviews | None:
    """None for a policy that does not look at running requests."""
    if isinstance(policy, Adaptive):
        return Planning(policy, config, waiting, running, cache, slots)
    if not isinstance(policy, RunningPolicy):
        return None
    return Preemption(policy, waiting, running, cache, config)


def least_needed(running: Running, preemption: Reviews | None, *, now: float) -> Sequence:
    """Whom to preempt when those who run have grown out of the pages."""
    if preemption:
        return preemption.for_growth(now=now)
    return newest_of_lowest_priority(iter(running))


def _missing(sequences: list[Sequence]) -> int:
    """Tokens they have to compute."""
    return sum(sequence.num_missing for sequence in sequences)


@dataclass(slots=True)
class _Room:
    """Slots and pages that nobody uses."""

    num_slots: int
    num_pages: int
