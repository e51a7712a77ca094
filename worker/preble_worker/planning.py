"""Which requests run, and in which form, where the policy plans for all of them at once."""

from preble_worker.config import SchedulerConfig
from preble_worker.eviction import CacheNode
from preble_worker.kv_form import KvForm
from preble_worker.page_cache import CachedPrefix, PageCache
from preble_worker.policies.adaptive import TOKENS_PER_PAUSE, Adaptive, Prospect, Room, Runner
from preble_worker.policies.pace import Pace, best_pace
from preble_worker.running import Running
from preble_worker.sequence import Sequence, newest_of_lowest_priority
from preble_worker.slots import Slots
from preble_worker.waiting import WaitingQueue

PLAN_STEPS = 4
"""Steps between two plans while requests wait, if none comes."""

SHRINK_PAGES = 4
"""Fewer pages of one request are not worth quantizing."""


class Planning:
    """Asks the policy for a plan every few steps, and carries it out.

    Attributes:
        review_at_step: the batch after which the next plan is due.
        prompt_tokens: how many a step computes at most, besides the decodes.
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
        self.prompt_tokens = config.max_batch_tokens
        self._policy = policy
        self._config = config
        self._waiting = waiting
        self._running = running
        self._cache = cache
        self._slots = slots
        self._cost = config.tiers.cost or config.policy_options.cost
        self._forms = config.tiers.compact_forms(self._cost)
        self._has_int8 = any(form.kind is KvForm.INT8 for form in self._forms)

    def review(self, *, step: int, now: float) -> list[Sequence]:
        """If a plan is due: who is to start in a compact form is told so, who is to leave the
        hidden form does, and who is to make room is returned.
        """
        decodes = self._running.decodes
        if step < self.review_at_step or not (len(self._waiting) or decodes.num_in[KvForm.HIDDEN]):
            return []
        self.review_at_step = step + PLAN_STEPS
        waiting = self._waiting.window()
        priority = min((s.priority for s in waiting), default=0)
        prospects = self._prospects(waiting, now)
        pace = self._pace(prospects)
        self.prompt_tokens = pace.tokens
        plan = self._policy.plan(
            prospects,
            self._room(pace),
            hidden=[self._hidden(s) for s in decodes.sequences if s.form is KvForm.HIDDEN],
            pausable=self._pausable(priority),
            shrinkable=self._shrinkable(priority) if waiting else [],
        )
        for sequence in waiting:
            sequence.form = KvForm.FULL
        for sequence, form in plan.starts:
            sequence.form = form
        for sequence in plan.upgrades:
            self._upgrade(sequence)
        for sequence in plan.shrinks:
            self._shrink(sequence)
        return plan.pauses

    def for_growth(self, *, now: float) -> Sequence:
        """Whom to preempt because those who run have grown out of the pages: the largest of those
        of the lowest priority who can be paused, else the newest.
        """
        newest = newest_of_lowest_priority(iter(self._running))
        pausable = self._pausable(newest.priority)
        return max(pausable, key=lambda r: r.pages).candidate if pausable else newest

    def _room(self, pace: Pace) -> Room:
        num_running = len(self._running)
        return Room(
            pages=max(self._cache.num_available - num_running, 0),
            count=max(self._config.max_running - num_running, 0),
            num_live=num_running + len(self._waiting),
            page_tokens=self._config.page_tokens,
            forms=self._forms,
            pace=pace,
            tokens=PLAN_STEPS * pace.tokens - pace.ahead,
        )

    def _pace(self, prospects: list[Prospect[Sequence]]) -> Pace:
        """By the shortest objective among those who wait."""
        decodes = self._running.decodes
        return best_pace(
            self._cost,
            most=self._config.max_batch_tokens - len(decodes),
            decodes=len(decodes),
            context=float(decodes.context_tokens),
            slo=min((p.slo_seconds for p in prospects), default=self._config.ttft_slo_seconds),
            ahead=self._running.prefills.num_missing,
        )

    def _prospects(self, waiting: list[Sequence], now: float) -> list[Prospect[Sequence]]:
        config, prefill_seconds = self._config, self._cost.prefill_seconds
        ttft_slo, tbt_slo = config.ttft_slo_seconds, config.tbt_slo_seconds
        page_tokens = self._cache.page_tokens
        used: dict[CacheNode, int] = {}
        host = self._running.host if self._forms else None
        prospects = []
        for sequence in waiting:
            can_wait = False
            if sequence.has_output:
                slo, default, since = sequence.tbt_slo_seconds, tbt_slo, sequence.waiting_since
                can_wait = sequence.num_output >= TOKENS_PER_PAUSE * sequence.num_pauses
            else:
                slo, default, since = sequence.ttft_slo_seconds, ttft_slo, sequence.arrived_at
            num_tokens, cached = sequence.num_tokens, sequence.cached_tokens
            num_pages = -(-num_tokens // page_tokens)
            if sequence.prefix.num_pages:
                num_pages -= self._num_used(sequence.prefix, used)
            prospects.append(
                Prospect(
                    sequence,
                    now - since,
                    prefill_seconds(float(num_tokens - cached), float(cached)),
                    default if slo is None else slo,
                    num_pages,
                    can_wait,
                    num_tokens - cached,
                    host is not None and host.keeps(sequence),
                )
            )
        return prospects

    def _hidden(self, sequence: Sequence) -> Runner[Sequence]:
        return Runner(sequence, self._slots.pages_to_upgrade(sequence))

    def _pausable(self, priority: int) -> list[Runner[Sequence]]:
        """Who decodes, of at most this priority, and would swap with all its objectives met; no
        more than the host has room for beside all that wait, or their return would be computed.
        """
        host = self._running.host
        if host is None:
            return []
        left = self._config.tiers.host_pages - sum(
            -(-s.num_tokens // self._cache.page_tokens) for s in self._waiting if s.num_pauses
        )
        self._running.decodes.note_generated()
        runners = []
        for sequence in self._running.decodes.sequences:
            if sequence.is_compact or sequence.priority > priority:
                continue
            if sequence.num_generated < TOKENS_PER_PAUSE * (sequence.num_pauses + 1):
                continue
            num_pages = self._slots.num_own(sequence)
            if sequence.num_pages <= left and host.is_cheaper(sequence, num_pages):
                left -= sequence.num_pages
                runners.append(Runner(sequence, num_pages, host.swap_seconds(num_pages)))
        return runners

    def _shrinkable(self, priority: int) -> list[Runner[Sequence]]:
        """Who decodes in the full form, of at most this priority, and could go on in int8. With a
        host nobody: only the full form can be paused, and that gives back all pages, not half.
        """
        if not self._has_int8 or self._running.host is not None:
            return []
        runners = []
        for sequence in self._running.decodes.sequences:
            if sequence.is_compact or sequence.priority > priority:
                continue
            num_pages = self._slots.num_own(sequence)
            if num_pages >= SHRINK_PAGES:
                runners.append(Runner(sequence, num_pages))
        return runners

    def _num_used(self, prefix: CachedPrefix, used: dict[CacheNode, int]) -> int:
        """Pages of `prefix` that are in use, so that who starts with them takes them for nothing.

        Args:
            used: pages of the path to a node that are in use, as far as they were asked for.
        """
        if not prefix.is_current():
            return 0
        num_used = used.get(prefix.node)
        if num_used is None:
            num_used = used[prefix.node] = self._cache.num_used_of(prefix.node)
        return min(prefix.num_pages, num_used)

    def _upgrade(self, sequence: Sequence) -> None:
        """Now, if there are pages; else another plan will say so again."""
        spare = len(self._running)
        if self._slots.pages_to_upgrade(sequence) + spare <= self._cache.num_available:
            self._slots.upgrade(sequence, self._running.decodes.num_computed(sequence))
            self._running.decodes.converted(sequence, KvForm.HIDDEN)

    def _shrink(self, sequence: Sequence) -> None:
        """Now, if there are pages; else another plan will say so again."""
        spare = len(self._running)
        if self._slots.pages_to_shrink(sequence) + spare <= self._cache.num_available:
            self._slots.shrink(sequence, self._running.decodes.num_computed(sequence))
            self._running.decodes.converted(sequence, KvForm.FULL)
