"""What it costs to heal a router's view of a worker: a repair by difference, and a whole snapshot.

Run: python tests/bench/bench_resync.py

The worker's real page cache holds conversations below shared prefixes; the router has lost a few
of its events. Bytes are those of the messages on the wire, both ways.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from true_cache import PAGE_TOKENS, TrueCache

from preble.events import SnapshotRequest
from preble.v1 import worker_pb2 as pb
from preble.wire import (
    snapshot_from_wire,
    snapshot_request_from_wire,
    snapshot_request_to_wire,
    snapshot_to_wire,
)
from preble_router.cluster_tree import ClusterTree
from preble_router.tree_repair import bucket_digests, take_snapshot

NUM_PAGES = 25_000
"""400,000 tokens, as an H100 with an 8B model."""
SHARED_PAGES = 128
OWN_PAGES = 24
LOST = (1, 10, 100)
TARGET_SHARE = 0.2
"""A repair of ten lost events may cost so much of a snapshot's bytes."""

T = TypeVar("T")


def worker_cache(rng: random.Random) -> TrueCache:
    """Twenty system prompts, and conversations below them until the pool is full."""
    cache = TrueCache(NUM_PAGES, epoch=1, rng=rng)
    prefixes = [rng.choices(range(100_000), k=SHARED_PAGES * PAGE_TOKENS) for _ in range(20)]
    while cache.pages.num_free > SHARED_PAGES + OWN_PAGES:
        converse(cache, prefixes[rng.randrange(20)], rng)
    return cache


def converse(cache: TrueCache, prefix: list[int], rng: random.Random) -> None:
    own = rng.randrange(1, 2 * OWN_PAGES) * PAGE_TOKENS
    cache.fill(prefix + rng.choices(range(100_000), k=own))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    done = work()
    return done, (time.perf_counter() - start) * 1e3


def heal(tree: ClusterTree, cache: TrueCache, *, whole: bool) -> tuple[int, int, float, float]:
    """Bytes up and down, milliseconds at the router and at the worker."""
    digests, asking_ms = timed(lambda: () if whole else bucket_digests(tree, 0))
    question = snapshot_request_to_wire(SnapshotRequest(1, digests))
    parts, worker_ms = timed(
        lambda: list(snapshot_to_wire(cache.pages.snapshot(snapshot_request_from_wire(question))))
    )
    _, healing_ms = timed(lambda: take_snapshot(tree, 0, snapshot_from_wire(parts)))
    assert tree.digest(0) == cache.digest, "not healed"
    up = pb.RouterMessage(snapshot_request=question).ByteSize()
    down = sum(pb.WorkerMessage(snapshot=part).ByteSize() for part in parts)
    return up, down, asking_ms + healing_ms, worker_ms


def main() -> None:
    rng = random.Random(1)
    cache = worker_cache(rng)
    cache.drain()
    tree = ClusterTree(PAGE_TOKENS)
    tree.add_slot()
    take_snapshot(tree, 0, cache.pages.snapshot())
    leaves = len(list(cache.leaves()))
    print(f"{cache.digest[0]} pages in {leaves} leaves; events lost, then healed\n")
    print("lost  by          bytes up  bytes down  router ms  worker ms")
    shares = {}
    for lost in LOST:
        totals = {}
        for whole in (False, True):
            for _ in range(lost):
                converse(cache, rng.choices(range(100_000), k=2 * PAGE_TOKENS), rng)
            cache.drain()
            up, down, router_ms, worker_ms = heal(tree, cache, whole=whole)
            totals[whole] = up + down
            name = "snapshot" if whole else "difference"
            row = f"{lost:4}  {name:10} {up:9} {down:11} {router_ms:10.1f} {worker_ms:10.1f}"
            print(row, flush=True)
        shares[lost] = totals[False] / totals[True]
    verdict = "PASSED" if shares[10] <= TARGET_SHARE else "FAILED"
    print(
        f"\ndifference / snapshot at 10 lost: {shares[10]:.1%}, target {TARGET_SHARE:.0%} {verdict}"
    )


if __name__ == "__main__":
    main()
