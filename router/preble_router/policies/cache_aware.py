"""As sglang-router's `cache_aware` does it: the worker of the longest match, unless imbalanced.

    imbalanced  max - min > 64 and max > 1.5 min of the requests in flight: the fewest in flight
    match       more than 0.3 of the prompt: the one worker noted there; else the fewest in flight

Sees its own notes of what it routed, and its own requests in flight. It is not told what caches
hold; its notes are cut to 67,108,864 characters per worker every 60 s. A page stands for 64
characters (16 tokens). The first worker wins ties.
"""

import random

from preble.page_keys import KEY_BYTES
from preble_router.booking import Booking
from preble_router.candidates import Candidates
from preble_router.policies.approximate_tree import ApproximateTree
from preble_router.policies.in_flight import fewest_in_flight
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column

MATCH_THRESHOLD = 0.3
BALANCE_ABSOLUTE = 64
BALANCE_RELATIVE = 1.5
PAGES_MAX = 67_108_864 // 64
TRIM_SECONDS = 60.0


class CacheAware(RoutingPolicy):
    name = "cache_aware"

    def __init__(self) -> None:
        self._tree = ApproximateTree(pages_max=PAGES_MAX)
        self._trimmed_at = 0.0

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        load = candidates.table.num_live[candidates.open_slots]
        most, least = float(load.max()), float(load.min())
        if most - least > BALANCE_ABSOLUTE and most > BALANCE_RELATIVE * least:
            return self._fewest(candidates, "imbalanced")
        path = candidates.request.page_keys
        match = self._tree.match(path)
        deepest = match.partial or (match.nodes[-1] if match.nodes else None)
        share = match.num_pages * KEY_BYTES / max(len(path), 1)
        if deepest is None or share <= MATCH_THRESHOLD:
            return self._fewest(candidates, f"{share:.0%} matched")
        slot = deepest.payload.latest
        if candidates.barred[slot] != 0.0:
            return self._fewest(candidates, "the matched worker is not open")
        return Choice(slot, f"{share:.0%} matched")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        table, path = candidates.table, candidates.request.page_keys
        matched = self._tree.matched_pages(path, num_slots=table.num_slots)
        return {"in_flight": table.num_live, "matched_pages": matched}

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._tree.insert(booking.slot, candidates.request.page_keys, now=candidates.now)
        if candidates.now >= self._trimmed_at + TRIM_SECONDS:
            self._trimmed_at = candidates.now
            self._tree.trim()

    def left(self, slot: int) -> None:
        self._tree.forget(slot)

    def _fewest(self, candidates: Candidates, why: str) -> Choice:
        slot = int(fewest_in_flight(candidates)[0])
        return Choice(slot, f"{why}: the fewest in flight")
