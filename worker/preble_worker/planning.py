"""Which requests run, and in which form, where the policy plans for all of them at once."""

from preble_worker.config import SchedulerConfig
from preble_worker.page_cache import PageCache
from preble_worker.policies.adaptive import Adaptive, Prospect, Room
from preble_worker.running import Running
from preble_worker.sequence import Sequence, newest_of_lowest_priority
from preble_worker.slots import Slots
from preble_worker.waiting import WaitingQueue

PLAN_STEPS = 4
"""Steps between two plans while requests wait, if none comes."""


class Planning:
    """Asks the policy for a plan every few steps, and carries it out.

    Attributes:
        review_at_step: the batch after which the next plan is due.
    """

    def __init__(
        self,
        policy: Adaptive,
        config: SchedulerConfig,
        waiting: WaitingQueue,
        running: Running,
        cache: PageCache,
        slots: Slots,
    ) -> None:
        self.review_at_step = 0
        self._policy = policy
        self._config = config
        self._waiting = waiting
        self._running = running
        self._cache = cache
        self._slots = slots
        self._cost = config.tiers.cost or config.policy_options.cost
        width = config.tiers.hidden_page_tokens
        self._hidden_share = config.page_tokens / width if width else None
        self._hidden_seconds = self._cost.per_hidden_token * config.page_tokens

    def review(self, *, step: int, now: float) -> list[Sequence]:
        """If a plan is due: who is to start in the hidden form is told so, and who is to leave it
        does. Nobody has to make room.
        """
        decodes = self._running.decodes
        if step < self.review_at_step or not (len(self._waiting) or decodes.num_hidden):
            return []
        self.review_at_step = step + PLAN_STEPS
        waiting = self._waiting.window()
        hidden = [s for s in decodes.sequences if s.is_hidden]
        prospects = [self._waiting_one(s, now) for s in waiting]
        prospects += [self._hidden_one(s) for s in hidden]
        plan = self._policy.plan(prospects, self._room())
        for sequence in waiting:
            sequence.is_hidden = False
        for sequence, is_hidden in plan.starts:
            sequence.is_hidden = is_hidden
        for sequence in plan.upgrades:
            self._upgrade(sequence)
        return []

    def for_growth(self, *, now: float) -> Sequence:
        """Whom to preempt because those who run have grown out of the pages."""
        return newest_of_lowest_priority(iter(self._running))

    def _room(self) -> Room:
        num_running = len(self._running)
        return Room(
            pages=max(self._cache.num_available - num_running, 0),
            count=max(self._config.max_running - num_running, 0),
            num_live=num_running + len(self._waiting),
            hidden_share=self._hidden_share,
            hidden_seconds=self._hidden_seconds,
        )

    def _waiting_one(self, sequence: Sequence, now: float) -> Prospect[Sequence]:
        config = self._config
        if sequence.has_output:
            slo, default = sequence.tbt_slo_seconds, config.tbt_slo_seconds
            since = sequence.waiting_since
        else:
            slo, default = sequence.ttft_slo_seconds, config.ttft_slo_seconds
            since = sequence.arrived_at
        cached = float(sequence.num_tokens - sequence.num_missing)
        return Prospect(
            candidate=sequence,
            pending_seconds=now - since,
            first_seconds=self._cost.prefill_seconds(float(sequence.num_missing), cached),
            slo_seconds=default if slo is None else slo,
            pages=self._wanted_pages(sequence),
            is_running=False,
        )

    def _hidden_one(self, sequence: Sequence) -> Prospect[Sequence]:
        num_hidden = (sequence.num_pages - sequence.num_held) / (self._hidden_share or 1.0)
        return Prospect(
            candidate=sequence,
            pending_seconds=0.0,
            first_seconds=0.0,
            slo_seconds=self._config.tbt_slo_seconds,
            pages=int(num_hidden),
            is_running=True,
        )

    def _wanted_pages(self, sequence: Sequence) -> int:
        """Available pages that `sequence` takes when it starts with keys and values."""
        num_pages = -(-sequence.num_tokens // self._cache.page_tokens)
        prefix = sequence.prefix
        if not self._cache.sharing or not prefix.is_current():
            return num_pages
        return num_pages - min(prefix.num_pages, self._cache.num_used_of(prefix.node))

    def _upgrade(self, sequence: Sequence) -> None:
        """Now, if there are pages; else another plan will say so again."""
        spare = len(self._running)
        if self._slots.pages_to_upgrade(sequence) + spare <= self._cache.num_available:
            self._slots.upgrade(sequence, self._running.decodes.num_computed(sequence))
            self._running.decodes.upgraded(sequence)
