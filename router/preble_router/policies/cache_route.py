"""As CacheRoute plans it (arXiv 2608.19677): hot prefixes get homes, the rest is balanced.

    every 10 s, from the rate of each key (its requests since, and half its last rate), a table that
    stays as it is until the next: the keys with the highest rates, as many copies in all as there
    are warm slots; a key gets ⌈rate / mean rate per worker⌉ copies; the heaviest copy first, each
    on the worker with the least expected load that has a warm slot left
    a key of the table goes to its home with the fewest in flight, any other request to the lighter
    of two workers drawn by lot

A key is the longest of a prompt's first 256, 512, 1,024 … tokens that comes more than once. A
worker has as many warm slots as mean keys fit 0.8 of its cache. These and the interval are ours.
Sees what it routed and its own requests in flight, no caches.
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
from preble_router.policies.home_plan import KEY_TOKENS_MIN, Prefix, keys_of, plan_homes
from preble_router.policies.in_flight import fewest, lighter_of_two
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable

INTERVAL_SECONDS = 10.0
KEPT = 0.5
"""Of a rate, over an interval."""
FORGOTTEN_BELOW = 0.25


class CacheRoute(RoutingPolicy):
    name = "cache_route"

    def __init__(self) -> None:
        self._requests: Counter[Prefix] = Counter()
        self._rates: dict[Prefix, float] = {}
        self._homes: dict[int, list[int]] = {}
        self._capacities: dict[int, int] = {}
        self._due_at: float | None = None

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._page_tokens = tree.page_tokens

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
        for digest, _, _ in reversed(self._prefixes(candidates.request.page_keys)):
            homes = self._homes.get(digest)
            if homes is not None:
                return [slot for slot in homes if candidates.barred[slot] == 0.0]
        return []

    def _prefixes(self, path: bytes) -> list[Prefix]:
        """The prefixes of `path` that may be keys, shortest first."""
        found: list[Prefix] = []
        above, length = 0, max(KEY_TOKENS_MIN // self._page_tokens, 1) * KEY_BYTES
        while length <= len(path):
            digest = xxhash.xxh3_64_intdigest(path[:length])
            found.append((digest, length // KEY_BYTES * self._page_tokens, above))
            above, length = digest, 2 * length
        return found

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        self._capacities[slot] = spec.capacity_tokens

    def left(self, slot: int) -> None:
        del self._capacities[slot]
        self._homes = {key: [s for s in at if s != slot] for key, at in self._homes.items()}

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        if self._due_at is None:
            self._due_at = candidates.now + INTERVAL_SECONDS
        self._requests.update(self._prefixes(candidates.request.page_keys))

    # Time

    def next_wakeup(self) -> float | None:
        return self._due_at

    def tick(self, *, now: float) -> None:
        faded = {key: KEPT * rate for key, rate in self._rates.items()}
        rates = {key: faded.get(key, 0.0) + self._requests[key] for key in faded | self._requests}
        self._rates = {key: rate for key, rate in rates.items() if rate >= FORGOTTEN_BELOW}
        self._requests = Counter()
        self._homes = plan_homes(keys_of(self._rates), self._capacities)
        self._due_at = now + INTERVAL_SECONDS if self._rates else None
