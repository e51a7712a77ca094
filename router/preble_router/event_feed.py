"""What to do about each numbered cache event of one worker: the only place that knows about loss.

The worker numbers its batches 1, 2, 3, … within an epoch. In sync, the next number is applied and
an older one ignored. A gap, another epoch, or a digest that differs from what the router believes
puts the feed out of sync: it asks for a snapshot, holds later batches back, and continues with
those behind the snapshot once that has come.

    joined ──► waiting ── snapshot ──► in sync ── gap, epoch, digest ──► waiting, asks once
                  ▲                       │
                  └────── asks again after RETRY_SECONDS without an answer

Out of sync after a gap the worker's marks stay until the snapshot replaces them: they are right
but for what the lost batch said. Only another epoch, a new process, makes them worthless.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from preble.events import CacheEvents, CacheSnapshot

RETRY_SECONDS = 5.0
"""A snapshot that has not come by then is asked for again."""
DIGEST_PAUSE_SECONDS = 1.0
DIGEST_PAUSE_SECONDS_MAX = 60.0
"""Between two snapshots for the digest's sake; doubled while they do not help."""
HELD_BATCHES_MAX = 4096
"""Batches kept while a snapshot is awaited; the oldest go first, which shows as a gap later."""


@dataclass(frozen=True, slots=True)
class FeedStep:
    """What the owner of the marks must do, in this order.

    Attributes:
        forget: the worker's former marks are worthless.
        snapshot: replaces all marks of the worker.
        batches: to be applied one after another.
    """

    forget: bool = False
    snapshot: CacheSnapshot | None = None
    batches: tuple[CacheEvents, ...] = ()


NOTHING = FeedStep()


class EventFeed:
    """The state of one worker's feed, from the moment its link is up.

    Attributes:
        seq: the batch that the router's view is as of.
        is_synced: the view is complete as of `seq`.
        has_view: some snapshot has come in this epoch; False only while the worker joins.
        snapshots_total: snapshots taken in.
    """

    __slots__ = (
        "_asked_at",
        "_digest_pause",
        "_digest_quiet_until",
        "_held",
        "_must_ask",
        "epoch",
        "has_view",
        "is_synced",
        "seq",
        "snapshots_total",
    )

    def __init__(self, epoch: int, *, now: float) -> None:
        self.epoch = epoch
        self.seq = 0
        self.is_synced = False
        self.has_view = False
        self.snapshots_total = 0
        self._held: dict[int, CacheEvents] = {}
        # The worker sends a first snapshot unasked: it counts as asked for at the join.
        self._asked_at = now
        self._must_ask = False
        self._digest_pause = DIGEST_PAUSE_SECONDS
        self._digest_quiet_until = now

    def receive(self, batch: CacheEvents) -> FeedStep:
        """A batch of events has come."""
        if batch.epoch != self.epoch:
            return self._change_epoch(batch)
        if not self.is_synced:
            self._hold(batch)
            return NOTHING
        if batch.seq <= self.seq:
            return NOTHING
        if batch.seq > self.seq + 1:
            self._lose_sync()
            self._hold(batch)
            return NOTHING
        self.seq = batch.seq
        return FeedStep(batches=(batch,))

    def receive_snapshot(self, snapshot: CacheSnapshot, *, now: float) -> FeedStep:
        """A snapshot has come, asked for or not."""
        forget = snapshot.epoch != self.epoch
        if not forget and self.has_view and snapshot.seq < self.seq:
            return NOTHING  # older than what is known: a late duplicate
        if forget:
            self._held.clear()
            self.epoch = snapshot.epoch
        self.snapshots_total += 1
        self.seq = snapshot.seq
        self.is_synced = self.has_view = True
        self._must_ask = False
        self._digest_quiet_until = max(self._digest_quiet_until, now)
        return FeedStep(forget=forget, snapshot=snapshot, batches=tuple(self._continue()))

    def receive_digest(self, *, agrees: bool, now: float) -> None:
        """The worker's digest was compared with the router's view, both as of the last batch."""
        if not self.is_synced:
            return
        if agrees:
            self._digest_pause = DIGEST_PAUSE_SECONDS
        elif now >= self._digest_quiet_until:
            self._digest_quiet_until = now + self._digest_pause
            self._digest_pause = min(2.0 * self._digest_pause, DIGEST_PAUSE_SECONDS_MAX)
            self._lose_sync()

    def ask_at(self) -> float | None:
        """When a snapshot must be asked for; None while in sync. In the past: now."""
        if self.is_synced:
            return None
        return float("-inf") if self._must_ask else self._asked_at + RETRY_SECONDS

    def ask(self, *, now: float) -> bool:
        """Whether to ask for a snapshot now; the caller does it."""
        due = self.ask_at()
        if due is None or due > now:
            return False
        self._must_ask = False
        self._asked_at = now
        return True

    def _lose_sync(self) -> None:
        self.is_synced = False
        self._must_ask = True

    def _change_epoch(self, batch: CacheEvents) -> FeedStep:
        """Another process speaks: nothing known of the former one holds."""
        self.epoch = batch.epoch
        self.seq = 0
        self.has_view = False
        self._held.clear()
        self._lose_sync()
        self._hold(batch)
        return FeedStep(forget=True)

    def _hold(self, batch: CacheEvents) -> None:
        if len(self._held) >= HELD_BATCHES_MAX:
            del self._held[min(self._held)]
        self._held[batch.seq] = batch

    def _continue(self) -> Iterable[CacheEvents]:
        """The held batches that follow the snapshot without a gap; a gap asks again."""
        for seq in sorted(self._held):
            if seq <= self.seq:
                continue
            if seq > self.seq + 1:
                self._lose_sync()
                break
            self.seq = seq
            yield self._held[seq]
        self._held = {seq: batch for seq, batch in self._held.items() if seq > self.seq}
