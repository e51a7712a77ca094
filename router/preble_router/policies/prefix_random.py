"""As vLLM production-stack's `prefixaware` does it: any worker of the longest match, by lot.

Sees its own notes of what it routed, in chunks of 128 characters (32 tokens, here as many pages as
hold them), and nothing of load or evictions. Its notes have no bound; ours has one, of 1,048,576
pages per worker. Without a match any worker is drawn.
"""

import random

from preble_router.booking import Booking
from preble_router.candidates import Candidates, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.approximate_tree import ApproximateTree
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable

CHUNK_TOKENS = 32
PAGES_MAX = 1 << 20


class PrefixRandom(RoutingPolicy):
    name = "prefix_random"

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        chunk_pages = max(CHUNK_TOKENS // tree.page_tokens, 1)
        self._tree = ApproximateTree(pages_max=PAGES_MAX, chunk_pages=chunk_pages)

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        matched = self.terms(candidates)["matched_pages"]
        slot = draw(candidates.least(-matched), rng)
        return Choice(slot, f"by lot among the longest matches, {matched[slot]:.0f} pages")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        path, num_slots = candidates.request.page_keys, candidates.table.num_slots
        return {"matched_pages": self._tree.matched_pages(path, num_slots=num_slots)}

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._tree.insert(booking.slot, candidates.request.page_keys, now=candidates.now)
        self._tree.trim_slot(booking.slot)

    def left(self, slot: int) -> None:
        self._tree.forget(slot)
