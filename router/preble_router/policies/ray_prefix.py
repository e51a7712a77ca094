"""As Ray Serve LLM's prefix-aware router does it: the longest match, else the smallest tree.

    imbalanced  max - min of the requests in flight beyond the threshold, infinite by default:
                the lighter of two drawn by lot
    match       10 % of the prompt or more: the workers noted there
    otherwise   the workers with the fewest pages noted
    of several  the fewest in flight, then by lot

Sees its own notes of what it routed, never evictions, and its own requests in flight. It evicts no
notes by default; ours are bounded by 1,048,576 pages per worker. Pages stand for characters.
"""

import random

import numpy as np

from preble.page_keys import KEY_BYTES
from preble_router.booking import Booking
from preble_router.candidates import Candidates, Slots, draw
from preble_router.policies.approximate_tree import ApproximateTree
from preble_router.policies.in_flight import fewest, lighter_of_two
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column

MATCH_THRESHOLD = 0.1
PAGES_MAX = 1 << 20


class RayPrefix(RoutingPolicy):
    name = "ray_prefix"

    def __init__(self, *, imbalance_max: float = float("inf")) -> None:
        self._imbalance_max = imbalance_max
        self._tree = ApproximateTree(pages_max=PAGES_MAX)

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        slots, load = candidates.open_slots, candidates.table.num_live
        if float(load[slots].max() - load[slots].min()) > self._imbalance_max:
            return Choice(lighter_of_two(slots, load, rng), "imbalanced: the lighter of two")
        terms = self.terms(candidates)
        matched = terms["matched_pages"]
        best: Slots = candidates.least(-matched)
        share = float(matched[best[0]]) * KEY_BYTES / max(len(candidates.request.page_keys), 1)
        if share >= MATCH_THRESHOLD:
            return Choice(draw(fewest(best, load), rng), f"{share:.0%} matched")
        smallest = candidates.least(terms["noted_pages"])
        return Choice(draw(fewest(smallest, load), rng), f"{share:.0%} matched: the smallest tree")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        table, path = candidates.table, candidates.request.page_keys
        noted = [float(self._tree.num_pages(slot)) for slot in range(table.num_slots)]
        return {
            "in_flight": table.num_live,
            "matched_pages": self._tree.matched_pages(path, num_slots=table.num_slots),
            "noted_pages": np.array(noted),
        }

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._tree.insert(booking.slot, candidates.request.page_keys, now=candidates.now)
        self._tree.trim_slot(booking.slot)

    def left(self, slot: int) -> None:
        self._tree.forget(slot)
