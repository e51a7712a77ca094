"""How long a router that starts needs to know what its workers hold: 10^6 pages in all.

Run: python tests/bench/bench_warm_start.py

Sixteen workers with conversations below shared system prompts; their snapshots are on the wire
when the clock starts, and every placement finds its prefix when it stops.
"""

import random
import time

from preble.events import CacheSnapshot
from preble.page_keys import KEY_BYTES
from preble.v1 import worker_pb2 as pb
from preble.wire import snapshot_from_wire, snapshot_to_wire
from preble_router.cluster_tree import ClusterTree
from preble_router.server import collect_garbage_seldom
from preble_router.tree_repair import take_snapshot

PAGES = 1_000_000
WORKERS = 16
TARGET_SECONDS = 1.0
KINDS = {"conversations": (64, 24), "documents": (16, 400), "short prompts": (32, 4)}
"""Pages of a shared prefix, and on average of what follows it, by kind of load."""


def worker_paths(
    prefixes: list[bytes], own_pages: int, num_pages: int, rng: random.Random
) -> tuple[bytes, ...]:
    """Leaves of one worker: a prefix, and an end of its own."""
    paths = []
    while num_pages > 0:
        num_own = rng.randrange(1, 2 * own_pages)
        paths.append(rng.choice(prefixes) + rng.randbytes(num_own * KEY_BYTES))
        num_pages -= num_own
    return tuple(paths)


def snapshots(shared_pages: int, own_pages: int) -> list[list[bytes]]:
    """Each worker's messages, encoded."""
    rng = random.Random(1)
    prefixes = [rng.randbytes(shared_pages * KEY_BYTES) for _ in range(50)]
    messages = []
    for _ in range(WORKERS):
        paths = worker_paths(prefixes, own_pages, PAGES // WORKERS, rng)
        parts = snapshot_to_wire(CacheSnapshot(1, 0, paths))
        messages.append([pb.WorkerMessage(snapshot=part).SerializeToString() for part in parts])
    return messages


def start(messages: list[list[bytes]]) -> tuple[ClusterTree, float, float]:
    """The tree, the seconds it took, and the longest that one worker kept the event loop."""
    tree = ClusterTree(16)
    began_at = time.perf_counter()
    longest = 0.0
    for slot, parts in enumerate(messages):
        slot_began_at = time.perf_counter()
        tree.add_slot()
        decoded = [pb.WorkerMessage.FromString(part).snapshot for part in parts]
        take_snapshot(tree, slot, snapshot_from_wire(decoded))
        longest = max(longest, time.perf_counter() - slot_began_at)
    return tree, time.perf_counter() - began_at, longest


def main() -> None:
    print(f"{PAGES} pages on {WORKERS} workers, target {TARGET_SECONDS:g} s\n")
    print("load              MB      nodes      pages  seconds  longest pause ms")
    for kind, (shared_pages, own_pages) in KINDS.items():
        messages = snapshots(shared_pages, own_pages)
        collect_garbage_seldom()  # As in a router's process.
        size = sum(len(part) for parts in messages for part in parts) / 1e6
        tree, seconds, longest = start(messages)
        verdict = "PASSED" if seconds <= TARGET_SECONDS else "FAILED"
        print(
            f"{kind:14} {size:5.0f} {tree.num_nodes:10} {tree.num_pages:10} {seconds:8.2f} "
            f"{longest * 1e3:17.0f}  {verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
