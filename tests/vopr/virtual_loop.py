"""An asyncio event loop whose time is a number: it never waits, and runs the same way each time."""

import asyncio
from collections.abc import Callable
from typing import Any

MOST_TURNS = 50_000
"""Turns without any time passing, after which something is taken to spin."""


class Stuck(AssertionError):
    """Nobody will ever do anything again, or time stands still."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Time passes only when nothing is left to do at the present instant, up to the next timer.

    Attributes:
        before_time_passes: called at the end of each instant.
        jumped_at: when time last went on with nobody having run meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before_time_passes: Callable[[], None] = lambda: None
        self.jumped_at = float("-inf")
        self._time = 1000.0
        self._turns = 0
        self._selector = self  # `select` below is all that the base class wants of one.

    def time(self) -> float:
        """Virtual seconds."""
        return self._time

    def jump(self, seconds: float) -> None:
        """The machine was suspended for so long."""
        self._time += seconds
        self.jumped_at = self._time

    def live_timers(self) -> list[asyncio.TimerHandle]:
        """Those that have neither run nor been cancelled."""
        return [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    def select(self, timeout: float | None) -> list[Any]:
        """What a selector is asked between two turns; here time passes instead."""
        if timeout is None:
            raise Stuck("every task waits for another")
        if timeout > 0.0:
            self.before_time_passes()
            self._time += timeout
            self._turns = 0
        else:
            self._turns += 1
            if self._turns > MOST_TURNS:
                raise Stuck("time stands still: something spins")
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Nothing sleeps that had to be woken."""
