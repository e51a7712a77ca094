"""The cache events of the current step, in order, and their numbering."""

from preble.events import CacheEvent, CacheEvents, Evicted, Stored
from preble.page_keys import KEY_BYTES


class EventLog:
    """Collects events until `drain` numbers them as one batch.

    An event that merely goes on where its predecessor ended is joined to it: a request that
    stores twice in a step, or a branch that is cut back page by page.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.seq = 0
        self._events: list[CacheEvent] = []

    def stored(self, path: bytes) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, Stored) and path.startswith(last.path):
            self._events.pop()
        self._events.append(Stored(path))

    def evicted(self, path: bytes, keep: int) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, Evicted) and last.path[: last.keep * KEY_BYTES] == path:
            self._events.pop()
            path = last.path
        self._events.append(Evicted(path, keep))

    @property
    def is_empty(self) -> bool:
        return not self._events

    def take(self) -> tuple[CacheEvent, ...]:
        """The events since the last call, without a number."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def drain(self, *, host: tuple[CacheEvent, ...] = ()) -> CacheEvents | None:
        """The events since the last call, and those of the `host`, as the next batch; None when
        there are none."""
        if not self._events and not host:
            return None
        self.seq += 1
        return CacheEvents(self.epoch, self.seq, self.take(), host)
