"""Static affinity: the hash of the first 1,024 tokens, modulo the workers. Knows nothing else.

A prompt with no full page has nothing to hash and goes anywhere.
"""

import random

import xxhash

from preble.page_keys import KEY_BYTES
from preble_router.candidates import Candidates, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.worker_table import WorkerTable

HASHED_TOKENS = 1024


class Sticky(RoutingPolicy):
    name = "sticky"

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._hashed_bytes = HASHED_TOKENS // tree.page_tokens * KEY_BYTES

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        slots = candidates.open_slots
        head = candidates.request.page_keys[: self._hashed_bytes]
        if not head:
            return Choice(draw(slots, rng), "no full page to hash")
        slot = int(slots[xxhash.xxh3_64_intdigest(head) % len(slots)])
        return Choice(slot, f"hash of the first {len(head) // KEY_BYTES} pages")
