"""The requests that wait for a place in a batch, and who is next."""

from collections.abc import Iterator
from itertools import groupby, islice
from operator import attrgetter

from sortedcontainers import SortedDict

from preble_worker.config import SchedulerConfig
from preble_worker.deadlines import Deadlines
from preble_worker.page_cache import PageCache
from preble_worker.policies import LocalPolicy
from preble_worker.sequence import Sequence, Stage


class WaitingQueue:
    """Waiting requests, higher priority first and oldest first within a priority.

    Those that can no longer meet their deadlines come behind all others, so that under overload no
    work is spent on them; they run when nobody else waits, or end when their time is up.

    Attributes:
        num_missing: tokens that the waiting requests have to compute, but for the lost ones. What
            the cache holds of a request is looked up when it arrives and again, if it changed,
            while the request is in the window.
    """

    def __init__(
        self,
        cache: PageCache,
        policy: LocalPolicy,
        deadlines: Deadlines,
        config: SchedulerConfig,
    ) -> None:
        self._cache = cache
        self._policy = policy
        self._deadlines = deadlines
        self._age_escape_seconds = config.age_escape_seconds
        self._queue: SortedDict = SortedDict()
        self._window: list[Sequence] | None = None
        self.num_missing = 0

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue.values())

    def add(self, sequence: Sequence, *, now: float) -> None:
        sequence.waiting_since = now
        sequence.is_lost = False
        self._look_up(sequence)
        self._enter(sequence)

    def remove(self, sequence: Sequence) -> None:
        del self._queue[_key(sequence)]
        self._window = None
        if not sequence.is_lost:
            self.num_missing -= sequence.num_missing

    def window(self) -> list[Sequence]:
        """Whom the policy is shown: the oldest, and with them the newest where old age does not
        decide. Of one priority after another. The caller must not change it.
        """
        if self._window is None:
            self._window = self._make_window()
        return self._window

    def _make_window(self) -> list[Sequence]:
        values, size = self._queue.values(), self._policy.window
        if not self._policy.bounds_waits or len(self._queue) <= size:
            return list(islice(values, size))
        oldest = list(islice(values, size // 2))
        newest = list(islice(reversed(values), size - size // 2))
        return oldest + newest[::-1]

    def in_turn(self, *, now: float) -> Iterator[Sequence]:
        """The window in the order in which to start. Requests may be removed meanwhile.

        Within a priority, whoever waited for `age_escape_seconds` comes first, oldest first,
        unless the policy bounds waits itself. Because nobody overtakes a request that lacks pages,
        theirs are then as good as reserved.
        """
        window = self._current_window()
        while self._deadlines and self._demote_lost(window, now=now):
            window = self._current_window()
        for same_priority in _by_priority(window):
            young = self._first_young(same_priority, now)
            yield from same_priority[:young]
            yield from self._policy.order(same_priority[young:], now=now)

    def start(self, sequence: Sequence, *, now: float) -> None:
        """Take out a request whose turn it was. Those that jumped the queue by age are no turn."""
        self.remove(sequence)
        sequence.waited_seconds += now - sequence.waiting_since
        if not self._is_aged(sequence, now):
            self._policy.started(sequence)

    def refresh(self, sequence: Sequence) -> None:
        """Look a waiting request up again if the cache changed where its match ended."""
        if not sequence.prefix.is_current():
            before = sequence.num_missing
            self._look_up(sequence)
            if not sequence.is_lost:
                self.num_missing += sequence.num_missing - before

    def _current_window(self) -> list[Sequence]:
        window = self.window()
        for sequence in window:
            if not sequence.prefix.is_current():
                self.refresh(sequence)
        return window

    def _demote_lost(self, window: list[Sequence], *, now: float) -> bool:
        """Put those that have become hopeless behind all others; whether there were any."""
        lost = [s for s in window if not s.is_lost and self._deadlines.is_lost(s, now=now)]
        for sequence in lost:
            self.remove(sequence)
            sequence.is_lost = True
            self._enter(sequence)
        return bool(lost)

    def _enter(self, sequence: Sequence) -> None:
        self._queue[_key(sequence)] = sequence
        self._window = None
        if not sequence.is_lost:
            self.num_missing += sequence.num_missing

    def _first_young(self, sequences: list[Sequence], now: float) -> int:
        """Where those begin that have not waited long, in order of arrival."""
        for index, sequence in enumerate(sequences):
            if not self._is_aged(sequence, now):
                return index
        return len(sequences)

    def _is_aged(self, sequence: Sequence, now: float) -> bool:
        if self._policy.bounds_waits:
            return False
        return now - sequence.arrived_at >= self._age_escape_seconds

    def _look_up(self, sequence: Sequence) -> None:
        path = sequence.reusable_path()
        sequence.prefix = prefix = self._cache.lookup(path)
        num_pages = max(prefix.num_pages, self._cache.num_below(path))
        sequence.cached_tokens = num_pages * self._cache.page_tokens

    def check(self) -> None:
        assert self._window is None or self._window == self._make_window()
        assert self.num_missing == sum(s.num_missing for s in self if not s.is_lost)
        for key, sequence in self._queue.items():
            assert key == _key(sequence)
            assert sequence.stage is Stage.WAITING and sequence.node is None


_LOST = 1 << 80
"""Behind every priority."""


def _key(sequence: Sequence) -> tuple[int, int]:
    rank = -sequence.priority
    return (rank + _LOST if sequence.is_lost else rank), sequence.order


_rank = attrgetter("is_lost", "priority")


def _by_priority(window: list[Sequence]) -> list[list[Sequence]]:
    """Runs of one priority, of the hopeful and then the lost; nearly always there is only one."""
    if not window or _rank(window[0]) == _rank(window[-1]):
        return [window]
    return [list(run) for _, run in groupby(window, key=_rank)]
