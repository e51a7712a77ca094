"""What one turn of the event loop may be used for, so that others' streams go on between two."""

import asyncio
from collections.abc import Callable

TURN_SECONDS = 0.05
"""What requests with a limit of time may take of one turn of the event loop; the rest of those that
came in it are refused unread."""
TURN_SHARE = 0.01
"""Of a longer limit of time, for whose sake a turn may take more: the request is not late by it."""


class LoopTurn:
    """How long the present one has taken: where a router has more at hand than it can look at,
    requests wait here first, before any queue of a worker.

    Measured only while somebody asks, from the first who asked in a turn on.
    """

    def __init__(self) -> None:
        self._began_at: float | None = None

    def is_over(self, timeout_seconds: float, *, now: float) -> bool:
        """Whether it has taken too long for one more request with that limit of time, 0 if that is
        not known. Never for the first who asks in this turn of the running loop."""
        if self._began_at is None:
            self._began_at = now
            asyncio.get_running_loop().call_soon(self._end)
        return now - self._began_at > max(TURN_SECONDS, TURN_SHARE * timeout_seconds)

    def _end(self) -> None:
        self._began_at = None


class Slices:
    """Work in pieces: so many in one turn of the event loop, what is left in the next ones.

    Args:
        most: in a turn, counted as `done` counts them.
        go_on: called in the next turn where pieces were left.
    """

    def __init__(self, most: float, *, go_on: Callable[[], None]) -> None:
        self._most = most
        self._go_on = go_on
        self._done = 0.0
        self._has_left = False

    def may_begin(self) -> bool:
        """Whether another piece may be done in this turn; if not, more will be in the next."""
        self._has_left = self._done >= self._most
        return not self._has_left

    def done(self, size: float) -> None:
        """A piece, small ones of 1."""
        if not self._done:
            asyncio.get_running_loop().call_soon(self._begin_turn)
        self._done += size

    def _begin_turn(self) -> None:
        self._done = 0.0
        if self._has_left:
            self._has_left = False
            self._go_on()
