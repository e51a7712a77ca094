"""What happens when: the only clock of a simulation."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Agenda:
    """Calls in the order of their times, and of their entry where times are equal.

    Attributes:
        now: in seconds; never goes back.
        num_done: calls made.
    """

    def __init__(self, *, begins_at: float = 0.0) -> None:
        self.now = begins_at
        self.num_done = 0
        self._num_entered = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Have `call(*arguments)` made at `time`, or at once if that has passed."""
        self._num_entered += 1
        heappush(self._heap, (max(time, self.now), self._num_entered, call, arguments))

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Have `call(*arguments)` made `seconds` from now."""
        self.at(self.now + seconds, call, *arguments)

    def step(self) -> bool:
        """Make the next call; False if there is none."""
        if not self._heap:
            return False
        self.now, _, call, arguments = heappop(self._heap)
        self.num_done += 1
        call(*arguments)
        return True
