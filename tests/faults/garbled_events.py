"""A worker whose cache events get lost, twice, late, out of order or wrong on their way.

    DIRECTORY/NAME.garble   the share of batches to which each of `FAULTS` happens; 1 loses all
    DIRECTORY/NAME.garbled  a line for each that something happened to: what, and when

Its reports go as they are, and so does the digest of its cache in each of them.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from corrupt_events import corrupted

from preble.events import CacheEvents, Evicted
from preble_worker.loop_messages import Delivery, LoopReport
from preble_worker.outputs import NO_TOKENS
from preble_worker.server import WorkerServer

FAULTS = ("drop", "duplicate", "reorder", "corrupt", "delay", "clear")
DELAY_SECONDS = (0.1, 1.0)


class GarbledEvents:
    """What the routers are told instead of each batch.

    Args:
        name: of the worker; also seeds what happens.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._share = directory / f"{name}.garble"
        self._record = directory / f"{name}.garbled"
        self._rng = random.Random(name)
        self._late: deque[tuple[float, CacheEvents]] = deque()
        self._swapped: CacheEvents | None = None

    def instead_of(self, report: LoopReport) -> Iterator[LoopReport]:
        """The report with what became of its events, and more such reports if there are more."""
        said: list[CacheEvents] = []
        if report.cache is not None:
            swapped, self._swapped = self._swapped, None
            said = self._garbled(report.cache) + ([swapped] if swapped else [])
        while self._late and self._late[0][0] <= time.monotonic():
            said.append(self._late.popleft()[1])
        yield replace(report, cache=said[0] if said else None)
        for batch in said[1:]:
            yield replace(report, cache=batch, others=[], decoded=NO_TOKENS, step_seconds=0.0)

    def _garbled(self, batch: CacheEvents) -> list[CacheEvents]:
        fault = self._fault()
        if fault is None:
            return [batch]
        with self._record.open("a") as record:
            record.write(f"{fault} {time.monotonic()}\n")
        match fault:
            case "duplicate":
                return [batch, batch]
            case "corrupt":
                return [corrupted(batch, self._rng)]
            case "clear":
                gone = tuple(Evicted(event.path, 0) for event in batch.events)
                return [replace(batch, events=gone)]
            case "reorder":
                self._swapped = batch
            case "delay":
                self._late.append((time.monotonic() + self._rng.uniform(*DELAY_SECONDS), batch))
        return []

    def _fault(self) -> str | None:
        share = float(self._share.read_text()) if self._share.exists() else 0.0
        for fault in FAULTS:
            if self._rng.random() < share:
                return fault
        return None


class GarbledServer(WorkerServer):
    """A worker that says what `garbled` makes of its events."""

    garbled: GarbledEvents

    def _pass_on(self, delivery: Delivery) -> None:
        if not isinstance(delivery, LoopReport):
            super()._pass_on(delivery)
            return
        for report in self.garbled.instead_of(delivery):
            super()._pass_on(report)
