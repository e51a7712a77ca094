"""How long the event loop has been at its present turn: where a router has more at hand than it can
look at, requests wait here first, before any queue of a worker."""

import asyncio


class LoopTurn:
    """Measured only while somebody asks, from the first who asked in a turn on."""

    def __init__(self) -> None:
        self._began_at: float | None = None

    def seconds(self, *, now: float) -> float:
        """Since somebody first asked in this turn of the running loop; 0 for that one."""
        if self._began_at is None:
            self._began_at = now
            asyncio.get_running_loop().call_soon(self._end)
        return now - self._began_at

    def _end(self) -> None:
        self._began_at = None
