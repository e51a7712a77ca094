"""How far a replay is: counted by the replay, shown while it runs."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

from preble_loadgen.report import RequestRecord

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 10.0
"""Between lines where there is no terminal."""
_RATE_WINDOW_SECONDS = 5.0


@dataclass(slots=True)
class Progress:
    """Counts of a replay in progress. `records` are those of the requests that have ended."""

    num_planned: int = 0
    num_sent: int = 0
    num_tokens: int = 0
    num_failed: int = 0
    records: list[RequestRecord] = field(default_factory=list)

    def sent(self) -> None:
        """A request left."""
        self.num_sent += 1

    def tokens(self, count: int) -> None:
        """Output tokens arrived."""
        self.num_tokens += count

    def ended(self, record: RequestRecord) -> None:
        """A request's answer is complete, or has failed."""
        self.records.append(record)
        self.num_failed += bool(record.error)


async def show(progress: Progress, console: Console) -> None:
    """Shows `progress` until cancelled: live on a terminal, elsewhere a line now and then."""
    speed = _Speed()
    if not console.is_terminal:
        while True:
            await asyncio.sleep(PLAIN_SECONDS)
            console.print(_line(progress, speed))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_line(progress, speed), refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)


class _Speed:
    """Tokens per second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def update(self, num_tokens: int) -> float:
        now = time.monotonic()
        self._seen.append((now, num_tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > _RATE_WINDOW_SECONDS:
            self._seen.popleft()
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return (last - first) / max(last_at - first_at, 1e-9)


def _line(progress: Progress, speed: _Speed) -> Text:
    num_ended = len(progress.records)
    return Text(
        f"sent {progress.num_sent:,}/{progress.num_planned:,}"
        f" · in flight {progress.num_sent - num_ended:,}"
        f" · done {num_ended - progress.num_failed:,}"
        f" · failed {progress.num_failed:,}"
        f" · {speed.update(progress.num_tokens):,.0f} tok/s"
    )
