"""What E2 remembers: everything assigned within the last H seconds, and nothing older.

Sums are kept beside the entries they sum, and every entry leaves them exactly once, when its age
reaches the window; a sum over no entries is set to 0, so that rounding never piles up.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from preble_router.residence import ClusterNode
from preble_router.worker_table import Column


@dataclass(slots=True, eq=False)
class Assigned:
    """One request in the window.

    Attributes:
        key: the key prefix of its path, None for a prompt shorter than a page.
        seconds: predicted prefill on its worker.
        queue_seconds: from placement to first token, once that has come.
    """

    at: float
    slot: int
    key: ClusterNode | None
    seconds: float
    queue_seconds: float | None = None


class AssignmentWindow:
    """Requests assigned per slot within `seconds`.

    Attributes:
        load: predicted prefill seconds per slot. counts: requests per slot.
        by_key: per slot and key prefix, its entries, oldest first.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.load: Column = np.zeros(0)
        self.counts: Column = np.zeros(0)
        self.by_key: list[dict[ClusterNode, deque[Assigned]]] = []
        self._entries: deque[Assigned] = deque()

    def add_slots(self, num_slots: int) -> None:
        """Make room up to `num_slots`."""
        missing = num_slots - len(self.by_key)
        self.load = np.append(self.load, np.zeros(missing))
        self.counts = np.append(self.counts, np.zeros(missing))
        self.by_key.extend({} for _ in range(missing))

    def clear(self, slot: int) -> None:
        """Another worker has `slot` now."""
        self._entries = deque(entry for entry in self._entries if entry.slot != slot)
        self.load[slot] = self.counts[slot] = 0.0
        self.by_key[slot].clear()

    def add(self, entry: Assigned) -> None:
        self._entries.append(entry)
        self.load[entry.slot] += entry.seconds
        self.counts[entry.slot] += 1.0
        if entry.key is not None:
            self.by_key[entry.slot].setdefault(entry.key, deque()).append(entry)

    def expire(self, now: float) -> None:
        """Forget what was assigned `seconds` ago or longer."""
        entries = self._entries
        while entries and entries[0].at <= now - self.seconds:
            entry = entries.popleft()
            slot = entry.slot
            self.counts[slot] -= 1.0
            self.load[slot] = self.load[slot] - entry.seconds if self.counts[slot] else 0.0
            if entry.key is not None:
                same = self.by_key[slot][entry.key]
                same.popleft()
                if not same:
                    del self.by_key[slot][entry.key]


class CacheRatio:
    """Share of the prompt tokens of the last `seconds` that each worker served from its cache."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._prompt: Column = np.zeros(0)
        self._cached: Column = np.zeros(0)
        self._entries: deque[tuple[float, int, int, int]] = deque()

    def add_slots(self, num_slots: int) -> None:
        missing = np.zeros(num_slots - len(self._prompt))
        self._prompt = np.append(self._prompt, missing)
        self._cached = np.append(self._cached, missing)

    def clear(self, slot: int) -> None:
        self._entries = deque(entry for entry in self._entries if entry[1] != slot)
        self._prompt[slot] = self._cached[slot] = 0.0

    def add(self, slot: int, *, prompt_tokens: int, cached_tokens: int, now: float) -> None:
        self._entries.append((now, slot, prompt_tokens, cached_tokens))
        self._prompt[slot] += prompt_tokens
        self._cached[slot] += cached_tokens

    def ratios(self, now: float) -> Column:
        """One per slot; 0 for a worker that started nothing."""
        entries = self._entries
        while entries and entries[0][0] <= now - self.seconds:
            _, slot, prompt, cached = entries.popleft()
            self._prompt[slot] -= prompt
            self._cached[slot] -= cached
        return self._cached / np.maximum(self._prompt, 1.0)
