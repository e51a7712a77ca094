"""Cache events: idempotent statements of a worker about the paths it holds.

Paths are concatenated 8-byte page keys from the first page of a prompt on. A batch is numbered
within the worker's epoch; what to do about a gap is decided in `preble_router.event_feed`.

A worker may hold pages on its device, where requests can use them at once, and in host memory,
from where they must be copied first. The two are independent: a page may be in both.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """The worker now holds every page of `path`."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Evicted:
    """Of `path` the worker now holds the first `keep` pages and nothing below them.

    What it holds on branches that leave `path` at or above page `keep` is untouched.
    """

    path: bytes
    keep: int


CacheEvent = Stored | Evicted


@dataclass(frozen=True, slots=True)
class CacheEvents:
    """The events of one step. `seq` counts batches from 1 within `epoch`, without a gap.

    `events` are about the device's pages, `host_events` about those in host memory.
    """

    epoch: int
    seq: int
    events: tuple[CacheEvent, ...]
    host_events: tuple[CacheEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """A router wants to know what a worker holds.

    Attributes:
        number: comes back in the answer; 0 for the snapshot that begins a link.
        bucket_digests: of the leaves that the router believes the worker holds, see
            `preble.leaf_digest`; empty asks for everything.
    """

    number: int = 0
    bucket_digests: tuple[int, ...] = ()


EVERYTHING = SnapshotRequest()
"""What a link begins with."""


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """What the worker held right after batch `seq`: one path per leaf of its tree.

    Attributes:
        host_paths: one path per leaf of what it has in host memory; everything, in a difference
            too, which is one of the device's pages.
        number: of the request that it answers.
        num_buckets: 0 in a snapshot of everything. In a *difference*, `paths` are only the leaves
            of `buckets`, and the router is right about the others.
        buckets: those that differ, ascending.
    """

    epoch: int
    seq: int
    paths: tuple[bytes, ...]
    host_paths: tuple[bytes, ...] = ()
    number: int = 0
    num_buckets: int = 0
    buckets: tuple[int, ...] = ()

    @property
    def is_difference(self) -> bool:
        return self.num_buckets > 0
