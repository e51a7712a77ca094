"""An asyncio event loop whose time is a number: it never waits, and runs the same way each time."""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

MOST_TURNS = 50_000
"""Turns without any time passing, after which something is taken to spin."""
_RESOLUTION = 1e-9
"""Seconds between which the base class's clock cannot tell; timers so close run in one turn."""


class Stuck(AssertionError):
    """Nobody will ever do anything again, or time stands still."""


class _Handle(asyncio.Handle):
    """Made without asking whether the loop is in debug mode: a life makes many thousands."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., Any],
        args: Any,
        loop: asyncio.AbstractEventLoop,
        context: Context | None = None,
    ) -> None:
        self._context = context if context is not None else copy_context()
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class VirtualLoop(asyncio.BaseEventLoop):
    """Time passes only when nothing is left to do at the present instant, up to the next timer.

    Attributes:
        before_time_passes: called at the end of each instant.
        jumped_at: when time last went on with nobody having run meanwhile.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[tuple[float, int, asyncio.TimerHandle]]

    def __init__(self) -> None:
        super().__init__()
        self.before_time_passes: Callable[[], None] = lambda: None
        self.jumped_at = float("-inf")
        self._time = 1000.0
        self._turns = 0
        self._num_timers = 0

    def time(self) -> float:
        """Virtual seconds."""
        return self._time

    def jump(self, seconds: float) -> None:
        """The machine was suspended for so long."""
        self._time += seconds
        self.jumped_at = self._time

    def live_timers(self) -> list[asyncio.TimerHandle]:
        """Those that have neither run nor been cancelled."""
        return [timer for *_, timer in self._scheduled if not timer.cancelled()]

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Timers of the same moment run in the order in which they were made."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._num_timers += 1
        heapq.heappush(self._scheduled, (when, self._num_timers, timer))
        return timer

    def _run_once(self) -> None:
        """One turn of the base class, in which time passes where that waits."""
        ready, timers = self._ready, self._scheduled
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if ready or self._stopping:  # type: ignore[attr-defined]
            self._turns += 1
            if self._turns > MOST_TURNS:
                raise Stuck("time stands still: something spins")
        elif timers:
            self._pass_time(timers[0][0] - self._time)
        else:
            raise Stuck("every task waits for another")
        end = self._time + _RESOLUTION
        while timers and timers[0][0] < end:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _pass_time(self, seconds: float) -> None:
        if seconds > 0.0:
            self.before_time_passes()
            self._time += seconds
            self._turns = 0

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Nothing sleeps that had to be woken."""
