"""What a router was told of a worker's cache, in the plainest way to hold it."""

from preble.page_keys import KEY_BYTES
from preble.v1 import worker_pb2 as pb


class ShadowFeed:
    """The plainest model of one link's cache events: which numbers came, and what they said.

    Attributes:
        paths: of each that was said to be held, all prefixes. host_paths: those in host memory.
        seq: of the last batch up to which nothing is missing; None before the first snapshot.
        asked_at: when a snapshot was asked for that has not come.
    """

    def __init__(self) -> None:
        self.paths: set[bytes] = set()
        self.host_paths: set[bytes] = set()
        self.seq: int | None = None
        self.asked_at = float("-inf")
        self._beyond: set[int] = set()

    @property
    def has_gap(self) -> bool:
        return bool(self._beyond)

    def batch(self, batch: pb.CacheEvents) -> None:
        for events, paths in ((batch.events, self.paths), (batch.host_events, self.host_paths)):
            for event in events:
                if event.WhichOneof("event") == "stored":
                    _store(paths, event.stored.path)
        if self.seq is None or batch.seq > self.seq:
            self._beyond.add(batch.seq)
        self._go_on()

    def snapshot(self, part: pb.CacheSnapshot) -> None:
        for path in part.paths:
            _store(self.paths, path)
        for path in part.host_paths:
            _store(self.host_paths, path)
        if not part.more:
            self.asked_at = float("-inf")
        if not part.more and (self.seq is None or part.seq >= self.seq):
            self.seq = part.seq
            self._beyond = {seq for seq in self._beyond if seq > part.seq}
            self._go_on()

    def _go_on(self) -> None:
        while self.seq is not None and self.seq + 1 in self._beyond:
            self.seq += 1
            self._beyond.remove(self.seq)


def _store(paths: set[bytes], path: bytes) -> None:
    end = len(path)
    while end and path[:end] not in paths:
        paths.add(path[:end])
        end -= KEY_BYTES
