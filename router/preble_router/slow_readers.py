"""Which clients have stopped to read their streams. Pure.

What is generated and not read waits in the router, at most the request's `max_tokens`. A client
that takes nothing for long holds a worker's pages for nobody.
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

CHECK_SECONDS = 1.0


class Stream(Protocol):
    """As far as it is looked at: `num_unread_bytes` wait, and `num_read_bytes` were taken."""

    @property
    def request_id(self) -> str: ...
    @property
    def num_read_bytes(self) -> int: ...
    @property
    def num_unread_bytes(self) -> int: ...


AnyStream = TypeVar("AnyStream", bound=Stream)


class SlowReaders:
    """Remembers how far each reader was when it last got on.

    Args:
        limit_seconds: how long output may wait while nothing is read; 0 for as long as it takes.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._check_at = float("-inf")
        self._waiting: dict[str, tuple[int, float]] = {}  # id: bytes read, seen there first at

    def find(self, streams: Iterable[AnyStream], *, now: float) -> list[AnyStream]:
        """Those of all live `streams` that have not been read for too long; looks once a second."""
        if not self._limit_seconds or now < self._check_at:
            return []
        self._check_at = now + CHECK_SECONDS
        waiting, stuck = {}, []
        for stream in streams:
            if not stream.num_unread_bytes:
                continue
            read, since = self._waiting.get(stream.request_id, (-1, now))
            if read != stream.num_read_bytes:
                since = now
            waiting[stream.request_id] = (stream.num_read_bytes, since)
            if now - since >= self._limit_seconds:
                stuck.append(stream)
        self._waiting = waiting
        return stuck
