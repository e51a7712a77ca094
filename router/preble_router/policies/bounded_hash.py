"""Consistent hashing with bounded loads: along the ring to the first worker that is not too full.

The first 256 tokens are hashed onto a ring of virtual nodes; a worker with more than 1.25 times the
mean of requests in flight is passed over. Sees requests in flight, no caches. A prompt with no full
page goes to a worker with the fewest.
"""

import random

import numpy as np
import numpy.typing as npt
import xxhash

from preble.page_keys import KEY_BYTES
from preble.types import WorkerSpec
from preble_router.candidates import Candidates, Slots, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.in_flight import fewest_in_flight
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.worker_table import Column, WorkerTable

HASHED_TOKENS = 256
LOAD_FACTOR = 1.25
VIRTUAL_NODES = 160
"""Points on the ring per worker."""


class BoundedHash(RoutingPolicy):
    name = "bounded_hash"

    def __init__(self) -> None:
        self._points: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._slots: Slots = np.zeros(0, np.intp)

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._hashed_bytes = HASHED_TOKENS // tree.page_tokens * KEY_BYTES

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        head = candidates.request.page_keys[: self._hashed_bytes]
        if not head:
            return Choice(draw(fewest_in_flight(candidates), rng), "no full page to hash")
        load = candidates.table.num_live
        limit = LOAD_FACTOR * float(load[candidates.open_slots].mean())
        start = int(np.searchsorted(self._points, np.uint64(xxhash.xxh3_64_intdigest(head))))
        passed: set[int] = set()
        for at in range(start, start + len(self._slots)):
            slot = int(self._slots[at % len(self._slots)])
            if slot not in passed and candidates.barred[slot] == 0.0 and load[slot] <= limit:
                return Choice(slot, f"on the ring, {len(passed)} passed over as too full")
            passed.add(slot)
        raise AssertionError("some open worker is no fuller than the mean")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        return {"in_flight": candidates.table.num_live}

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        names = (f"{spec.worker_id}#{i}".encode() for i in range(VIRTUAL_NODES))
        points = np.array(sorted(xxhash.xxh3_64_intdigest(name) for name in names), np.uint64)
        at = np.searchsorted(self._points, points)
        self._points = np.insert(self._points, at, points)
        self._slots = np.insert(self._slots, at, slot)

    def left(self, slot: int) -> None:
        kept = self._slots != slot
        self._points, self._slots = self._points[kept], self._slots[kept]
