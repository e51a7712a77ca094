"""Which requests have run out of time, and which will before they can end."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from preble_worker.sequence import Sequence, Stage

_SLACK = 64
_MEMORY = 0.9
"""Weight that older steps keep in the mean of their seconds."""


class Deadlines:
    """Live requests by deadline. Ended ones stay until they surface or outnumber the live.

    Attributes:
        step_seconds: what a step takes, of late, while there are deadlines.
    """

    def __init__(self, *, max_batch_tokens: int) -> None:
        self.step_seconds = 0.0
        self._max_batch_tokens = max_batch_tokens
        self._heap: list[tuple[float, int, Sequence]] = []

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return bool(self._heap)

    def add(self, sequence: Sequence, *, num_live: int) -> None:
        if sequence.deadline_at is None:
            return
        if len(self._heap) > 2 * num_live + _SLACK:
            self._heap = [entry for entry in self._heap if entry[2].stage is not Stage.ENDED]
            heapify(self._heap)
        heappush(self._heap, (sequence.deadline_at, sequence.order, sequence))

    def passed(self, *, now: float) -> Iterator[Sequence]:
        """Take out the live requests whose deadline is not after `now`."""
        while self._heap and self._heap[0][0] <= now:
            sequence = heappop(self._heap)[2]
            if sequence.stage is not Stage.ENDED:
                yield sequence

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        if self._heap:
            old = self.step_seconds or seconds
            self.step_seconds = _MEMORY * old + (1.0 - _MEMORY) * seconds

    def is_lost(self, sequence: Sequence, *, now: float) -> bool:
        """Whether a waiting request would miss its deadline even if it started now: its prefill
        and the output it is expected to have, one step for each of its tokens."""
        if sequence.deadline_at is None:
            return False
        prefill_steps = sequence.num_missing / self._max_batch_tokens
        decode_steps = (sequence.predicted_output_tokens or 0) - sequence.num_output
        steps = prefill_steps + max(decode_steps, 1)
        return now + steps * self.step_seconds > sequence.deadline_at
