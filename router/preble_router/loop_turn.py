"""How long the event loop has been at its present turn: where a router has more at hand than it can
look at, requests wait here first, before any queue of a worker."""

import asyncio

TURN_SECONDS = 0.05
"""What requests with a limit of time may take of one turn of the event loop; the rest of those that
came in it are refused unread."""
TURN_SHARE = 0.01
"""Of a longer limit of time, for whose sake a turn may take more: the request is not late by it."""


class LoopTurn:
    """Measured only while somebody asks, from the first who asked in a turn on."""

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
