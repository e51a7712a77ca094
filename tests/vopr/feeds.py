"""What a router was told of a worker's cache, in the plainest way to hold it."""

from preble.page_keys import KEY_BYTES
from preble.v1 import worker_pb2 as pb


class ShadowFeed:
    """The plainest model of one link's cache events: which numbers came, and what they said.

    Attributes:
        paths: of each that was said to be held, all prefixes.
        seq: of the last batch up to which nothing is missing; None before the first snapshot.
    """

    def __init__(self) -> None:
        self.paths: set[bytes] = set()
        self.seq: int | None = None
        self._beyond: set[int] = set()

    @property
    def has_gap(self) -> bool:
        return bool(self._beyond)

    def batch(self, batch: pb.CacheEvents) -> None:
        for event in batch.events:
            if event.WhichOneof("event") == "stored":
                self._store(event.stored.path)
        if self.seq is None or batch.seq > self.seq:
            self._beyond.add(batch.seq)
        self._go_on()

    def snapshot(self, part: pb.CacheSnapshot) -> None:
        for path in part.paths:
            self._store(path)
        if not part.more and (self.seq is None or part.seq >= self.seq):
            self.seq = part.seq
            self._beyond = {seq for seq in self._beyond if seq > part.seq}
            self._go_on()

    def _go_on(self) -> None:
        while self.seq is not None and self.seq + 1 in self._beyond:
            self.seq += 1
            self._beyond.remove(self.seq)

    def _store(self, path: bytes) -> None:
        end = len(path)
        while end and path[:end] not in self.paths:
            self.paths.add(path[:end])
            end -= KEY_BYTES
