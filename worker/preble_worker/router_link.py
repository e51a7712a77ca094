"""One router's stream, seen from its worker: what waits to be written, and how long it may.

Writing waits for the router to read, so what it has not taken yet is kept here, within bounds.

    keeps up ── LAG_MESSAGES behind ──▶ lags: the step loop waits for it, as long as it reads on
                                          │
                                          └── reads nothing ──▶ stuck: nobody waits; then cut off

A router that is cut off links again and starts from a snapshot.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from preble.v1 import worker_pb2 as pb

LAG_MESSAGES = 64
"""More unread messages than that are no hiccup: the router is slower than the engine."""

LAG_PATIENCE_SECONDS = 0.1
"""Who takes nothing for as long is stuck, not slow; the other routers must not pay for it."""

MAX_PENDING_BYTES = 32 * 1024 * 1024
"""Steps of about a minute with 256 streams at 50 steps per second."""

MAX_STUCK_SECONDS = 10.0
"""A router that takes nothing for as long is not coming back."""


class RouterLink:
    """The outgoing half of a link.

    Attributes:
        number: names the link within this process.
        is_live: its first snapshot is queued; every later report goes out on it.
        awaits_snapshot: one is being taken or written.
        cut_reason: why the worker broke it off, "" unless it did.
    """

    def __init__(
        self,
        number: int,
        *,
        router_id: str,
        peer: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = number
        self.router_id = router_id
        self.peer = peer
        self.is_live = False
        self.awaits_snapshot = False
        self.cut_reason = ""
        self._clock = clock
        # Each entry is the bytes it counts for and the messages it consists of.
        self._pending: deque[tuple[int, Iterable[pb.WorkerMessage]]] = deque()
        self._pending_bytes = 0
        self._ended = False
        self._writing = False
        self._progress_at = clock()
        self._wakeup = asyncio.Event()
        self._task = asyncio.current_task()

    def __str__(self) -> str:
        return f"router {self.router_id or '(unnamed)'} at {self.peer}"

    def put(self, message: pb.WorkerMessage) -> None:
        """Queue `message`; cuts the link when the router is too far behind."""
        self._enqueue(message.ByteSize(), (message,))
        if self._pending_bytes > MAX_PENDING_BYTES:
            self.cut(f"it left {self._pending_bytes >> 20} MiB unread")
        elif self._clock() - self._progress_at > MAX_STUCK_SECONDS:
            self.cut(f"it read nothing for {MAX_STUCK_SECONDS:g} s")

    def put_parts(self, messages: Iterable[pb.WorkerMessage]) -> None:
        """Queue messages that are made when they are written: parts of a large snapshot."""
        self._enqueue(0, messages)

    @property
    def lags(self) -> bool:
        """It reads, but more slowly than the step loop reports."""
        unread_seconds = self._clock() - self._progress_at
        return len(self._pending) > LAG_MESSAGES and unread_seconds < LAG_PATIENCE_SECONDS

    def end(self) -> None:
        """Take nothing more; `write_to` returns when everything queued is written."""
        self._ended = True
        self._wakeup.set()

    def cut(self, reason: str) -> None:
        """Break the link off, dropping what is queued."""
        if self._ended:
            return
        self.cut_reason = reason
        self.end()
        self._pending.clear()
        if self._task is not None:
            self._task.cancel()

    async def write_to(self, write: Callable[[pb.WorkerMessage], Awaitable[None]]) -> None:
        """Write what is queued, as it comes, until the link ends."""
        while True:
            while self._pending:
                self._writing = True
                size, messages = self._pending.popleft()
                for message in messages:
                    await write(message)
                    self._progress_at = self._clock()
                self._pending_bytes -= size
            self._writing = False
            if self._ended:
                return
            self._wakeup.clear()
            await self._wakeup.wait()

    def _enqueue(self, size: int, messages: Iterable[pb.WorkerMessage]) -> None:
        if self._ended:
            return
        if not self._pending and not self._writing:
            self._progress_at = self._clock()
        self._pending.append((size, messages))
        self._pending_bytes += size
        self._wakeup.set()
