"""As CacheRoute plans it (arXiv 2608.19677): hot prefixes get homes, the rest is balanced.

    every 10 s, from the requests per key prefix of the last 10 s, a table that stays as it is until
    the next: the keys with the highest rates, as many copies in all as there are warm slots; a key
    gets ⌈rate / mean rate per worker⌉ copies; the heaviest copy first, each on the worker with the
    least expected load that has a warm slot left
    a key of the table goes to its home with the fewest in flight, any other request to the lighter
    of two workers drawn by lot

A key is the deepest node of a prompt's path that is longer than all above it, asked for twice at
least. A worker has as many warm slots as mean keys fit half of its cache; that and the interval are
ours. Sees what it routed and its own requests in flight.
"""

import random
from collections import Counter

import numpy as np
import xxhash

from preble.page_keys import KEY_BYTES
from preble.types import WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.e2_shift import key_prefix
from preble_router.policies.home_plan import HotKey, plan_homes
from preble_router.policies.in_flight import fewest, lighter_of_two
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable

INTERVAL_SECONDS = 10.0


class CacheRoute(RoutingPolicy):
    name = "cache_route"

    def __init__(self) -> None:
        self._requests: Counter[tuple[int, int]] = Counter()
        self._homes: dict[int, list[int]] = {}
        self._lengths: list[int] = []
        self._capacities: dict[int, int] = {}
        self._due_at: float | None = None

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._tree = tree

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        load = candidates.table.num_live
        homes = self._open_homes(candidates)
        if homes:
            slot = draw(fewest(np.array(homes, np.intp), load), rng)
            return Choice(slot, f"one of {len(homes)} homes of its key")
        return Choice(lighter_of_two(candidates.open_slots, load, rng), "the lighter of two")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        is_home: Column = np.zeros(candidates.table.num_slots)
        is_home[self._open_homes(candidates)] = 1.0
        return {"in_flight": candidates.table.num_live, "is_home": is_home}

    def _open_homes(self, candidates: Candidates) -> list[int]:
        """Of the longest key of the table that the prompt begins with."""
        path = candidates.request.page_keys
        for length in self._lengths:
            if length <= len(path):
                homes = self._homes.get(xxhash.xxh3_64_intdigest(path[:length]))
                if homes is not None:
                    return [slot for slot in homes if candidates.barred[slot] == 0.0]
        return []

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        self._capacities[slot] = spec.capacity_tokens

    def left(self, slot: int) -> None:
        del self._capacities[slot]
        self._homes = {key: [s for s in at if s != slot] for key, at in self._homes.items()}

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        if self._due_at is None:
            self._due_at = candidates.now + INTERVAL_SECONDS
        key = key_prefix(path_end)
        if key is not None:
            above, node = 0, key
            while node.parent is not None:
                above += len(node.edge)
                node = node.parent
            digest = xxhash.xxh3_64_intdigest(candidates.request.page_keys[:above])
            self._requests[digest, above] += 1

    # Time

    def next_wakeup(self) -> float | None:
        return self._due_at

    def tick(self, *, now: float) -> None:
        page_tokens = self._tree.page_tokens
        keys = [
            HotKey(digest, length // KEY_BYTES * page_tokens, count)
            for (digest, length), count in self._requests.items()
        ]
        self._homes = plan_homes(keys, self._capacities)
        lengths = {length for digest, length in self._requests if digest in self._homes}
        self._lengths = sorted(lengths, reverse=True)
        self._due_at = now + INTERVAL_SECONDS if self._requests else None
        self._requests = Counter()
