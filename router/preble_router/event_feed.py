"""What to do about each numbered cache event of one worker: the only place that knows about loss.

The worker numbers its batches 1, 2, 3, … within an epoch. In sync, the next number is applied and
an older one ignored. A gap, another epoch, or a digest that differs from what the router believes
raises a doubt. A batch that comes late or a digest that agrees after all lays it; otherwise the
worker is asked soon after, not at once, so that many doubts do not ask in the same instant:

    joined ──► waiting ◄── asks, once ── doubt ── late batch, digest agrees ──► in sync
                  │                        ▲                                       │ ▲
                  │                        └──────── gap, epoch, digest ───────────┘ │
                  └──── snapshot, or the difference ─────────────────────────────────┘

While it waits, the router's view stands still and later batches are held back: the difference is
one from the view that was asked about. An answer that does not come is asked for again.

Unless the epoch is another, the worker's marks stay meanwhile: they are right but for what the
lost batch said. A path that is not made of whole page keys counts as not received.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from preble.events import CacheEvents, CacheSnapshot
from preble.page_keys import KEY_BYTES

DOUBT_SECONDS = (0.1, 0.3)
"""Between a doubt and asking, evenly at random."""
RETRY_SECONDS = 1.0
"""An answer that has not come by then is asked for again; up to half as long again at random."""
DIGEST_PAUSE_SECONDS = 0.5
DIGEST_PAUSE_SECONDS_MAX = 60.0
"""Between two snapshots for the digest's sake; doubled while they do not help."""
HELD_BATCHES_MAX = 4096
"""Batches kept while an answer is awaited; the oldest go first, which shows as a gap later."""


@dataclass(frozen=True, slots=True)
class FeedStep:
    """What the owner of the marks must do, in this order.

    Attributes:
        forget: the worker's former marks are worthless.
        snapshot: replaces all marks of the worker, or if it is a difference, those in its buckets.
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
        has_view: some snapshot has come in this epoch; False only while the worker joins.
        number: of the last request for a snapshot.
        snapshots_total, differences_total: taken in.
    """

    __slots__ = (
        "_ask_at",
        "_awaits",
        "_digest_asks",
        "_digest_pause",
        "_digest_quiet_until",
        "_disagrees",
        "_held",
        "_held_when_asked",
        "_rng",
        "differences_total",
        "epoch",
        "has_view",
        "number",
        "seq",
        "snapshots_total",
    )

    def __init__(self, epoch: int, *, now: float, rng: random.Random) -> None:
        self.epoch = epoch
        self.seq = 0
        self.has_view = False
        self.number = 0
        self.snapshots_total = 0
        self.differences_total = 0
        self._rng = rng
        self._held: dict[int, CacheEvents] = {}
        self._held_when_asked: frozenset[int] = frozenset()
        # The worker sends a first snapshot unasked: it counts as asked for at the join.
        self._awaits = True
        self._ask_at: float | None = now + RETRY_SECONDS
        self._disagrees = False
        self._digest_asks = 0
        self._digest_pause = DIGEST_PAUSE_SECONDS
        self._digest_quiet_until = now

    @property
    def is_synced(self) -> bool:
        """The view is complete as of `seq`, as far as anybody knows."""
        return self._ask_at is None

    @property
    def wants_difference(self) -> bool:
        """The view is worth a repair: it is not empty, and none has failed to help just now."""
        return self.has_view and self._digest_asks <= 1

    def receive(self, batch: CacheEvents, *, now: float) -> FeedStep:
        """A batch of events has come."""
        if batch.epoch < self.epoch or not _is_usable(batch):
            return NOTHING
        if batch.epoch > self.epoch:
            step = self._change_epoch(batch.epoch, now)
            self._hold(batch)
            return step
        if batch.seq <= self.seq:
            return NOTHING
        if batch.seq == self.seq + 1 and not self._held and not self._awaits:
            self.seq = batch.seq
            return FeedStep(batches=(batch,))
        self._hold(batch)
        if self._awaits or not self.has_view:
            return NOTHING
        return FeedStep(batches=self._continue(now))

    def receive_snapshot(self, snapshot: CacheSnapshot, *, now: float) -> FeedStep:
        """A snapshot has come, asked for or not."""
        if not self._is_wanted(snapshot) or not _is_whole(
            chain(snapshot.paths, snapshot.host_paths)
        ):
            return NOTHING
        forget = snapshot.epoch != self.epoch
        if forget and snapshot.is_difference:  # It differs from what another process held.
            return self._change_epoch(snapshot.epoch, now)
        if forget:
            self._held.clear()
            self.epoch = snapshot.epoch
        if snapshot.number:
            # It had said what came before the question: a later number was never its own.
            for seq in self._held_when_asked & self._held.keys():
                del self._held[seq]
        if snapshot.is_difference:
            self.differences_total += 1
        else:
            self.snapshots_total += 1
        self.seq = snapshot.seq
        self.has_view = True
        self._awaits = self._disagrees = False
        self._ask_at = None
        return FeedStep(forget=forget, snapshot=snapshot, batches=self._continue(now))

    def receive_digest(self, *, agrees: bool, now: float) -> None:
        """The worker's digest was compared with the router's view, both as of the last batch."""
        if self._awaits or self._held or not self.has_view:
            return
        if agrees:
            self._disagrees = False
            self._digest_asks = 0
            self._digest_pause = DIGEST_PAUSE_SECONDS
            self._ask_at = None
        elif not self._disagrees:
            self._disagrees = True
            self._doubt(max(now, self._digest_quiet_until))

    def ask_at(self) -> float | None:
        """When the worker must be asked; None while in sync."""
        return self._ask_at

    def ask(self, *, now: float) -> bool:
        """Whether to ask for a snapshot or a difference now; the caller does it."""
        if self._ask_at is None or self._ask_at > now:
            return False
        if not self._awaits:
            self._awaits = True
            self.number += 1
            self._held_when_asked = frozenset(self._held)
            if self._disagrees:
                self._digest_asks += 1
                self._digest_quiet_until = now + self._digest_pause
                self._digest_pause = min(2.0 * self._digest_pause, DIGEST_PAUSE_SECONDS_MAX)
        self._ask_at = now + RETRY_SECONDS * self._rng.uniform(1.0, 1.5)
        return True

    def _is_wanted(self, snapshot: CacheSnapshot) -> bool:
        """Not a late duplicate, and not the difference from a view that is no more."""
        if snapshot.number:
            return self._awaits and snapshot.number == self.number
        is_newer = (snapshot.epoch, snapshot.seq) >= (self.epoch, self.seq)
        return is_newer or not self.has_view

    def _doubt(self, since: float) -> None:
        if self._ask_at is None:
            self._ask_at = since + self._rng.uniform(*DOUBT_SECONDS)

    def _change_epoch(self, epoch: int, now: float) -> FeedStep:
        """Another process speaks: nothing known of the former one holds."""
        self.epoch = epoch
        self.seq = 0
        self.has_view = self._awaits = self._disagrees = False
        self._held.clear()
        self._ask_at = None
        self._doubt(now)
        return FeedStep(forget=True)

    def _hold(self, batch: CacheEvents) -> None:
        if len(self._held) >= HELD_BATCHES_MAX:
            del self._held[min(self._held)]
        self._held[batch.seq] = batch

    def _continue(self, now: float) -> tuple[CacheEvents, ...]:
        """The held batches that follow without a gap; a gap is doubted."""
        following = []
        for seq in sorted(self._held):
            if seq > self.seq + 1:
                break
            batch = self._held.pop(seq)
            if seq == self.seq + 1:
                self.seq = seq
                following.append(batch)
        if self._held:
            self._doubt(now)
        elif not self._disagrees:
            self._ask_at = None
        return tuple(following)


def _is_usable(batch: CacheEvents) -> bool:
    return _is_whole(event.path for event in chain(batch.events, batch.host_events))


def _is_whole(paths: Iterable[bytes]) -> bool:
    return not any(len(path) % KEY_BYTES for path in paths)
