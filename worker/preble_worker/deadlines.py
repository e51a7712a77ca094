"""Which requests have run out of time."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from preble_worker.sequence import Sequence, Stage

_SLACK = 64


class Deadlines:
    """Live requests by deadline. Ended ones stay until they surface or outnumber the live."""

    def __init__(self) -> None:
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
