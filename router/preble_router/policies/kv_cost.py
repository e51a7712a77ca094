"""As Dynamo's KV router does it: blocks to prefill there, and blocks that will decode there.

    cost = max(0, prefill blocks on the way + blocks of the prompt - blocks it holds)
           + blocks of the live requests there, shared ones once, this one included

Sees what workers say they hold (not what is on its way there), and its own books: a request's
prefill is on them until its first token, its blocks until it ends; output is not counted.
Temperature 0; equals by lot.
"""

import random

import numpy as np

from preble.page_keys import KEY_BYTES
from preble.prefix_tree import Node
from preble_router.booking import Booking
from preble_router.candidates import Candidates, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.active_blocks import ActiveBlocks, Users
from preble_router.policies.path_masks import held_pages
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable

OVERLAP_WEIGHT = 1.0


class KvCost(RoutingPolicy):
    name = "kv_cost"

    def __init__(self) -> None:
        self._active = ActiveBlocks()
        self._ends: dict[str, Node[Users]] = {}
        self._prefills: dict[str, float] = {}
        self._prefill: dict[int, float] = {}

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._page_tokens = tree.page_tokens

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        terms = self.terms(candidates)
        cost = OVERLAP_WEIGHT * terms["prefill_blocks"] + terms["decode_blocks"]
        slot = draw(candidates.least(cost), rng)
        return Choice(slot, f"least cost: {cost[slot]:.1f} blocks")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        num_slots, path = candidates.table.num_slots, candidates.request.page_keys
        prefill = np.zeros(num_slots)
        decode = np.zeros(num_slots)
        for slot in candidates.open_slots.tolist():
            prefill[slot] = self._prefill.get(slot, 0.0)
            decode[slot] = self._active.num_pages(slot)
        held = held_pages(candidates.match, num_slots=num_slots)
        prompt = candidates.request.num_tokens / self._page_tokens
        shared = self._active.shared_pages(path, num_slots=num_slots)
        return {
            "prefill_blocks": np.maximum(prefill + prompt - held, 0.0),
            "decode_blocks": decode + len(path) // KEY_BYTES - shared,
        }

    # Facts

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        request, slot = candidates.request, booking.slot
        held = _held_bytes(path_end, slot) // KEY_BYTES
        blocks = max(request.num_tokens / self._page_tokens - held, 0.0)
        self._prefills[request.request_id] = blocks
        self._prefill[slot] = self._prefill.get(slot, 0.0) + blocks
        self._ends[request.request_id] = self._active.add(slot, request.page_keys)

    def started(self, booking: Booking, *, cached_tokens: int, now: float) -> None:
        blocks = self._prefills.pop(booking.request_id, 0.0)
        self._prefill[booking.slot] -= blocks

    def closed(self, booking: Booking, *, output_tokens: int | None, now: float) -> None:
        self.started(booking, cached_tokens=0, now=now)
        self._active.remove(booking.slot, self._ends.pop(booking.request_id))

    def left(self, slot: int) -> None:
        self._prefill.pop(slot, None)
        self._active.forget(slot)


def _held_bytes(end: ClusterNode, slot: int) -> int:
    """Bytes of the path to `end` that `slot` said it holds."""
    held, node = 0, end
    while node.parent is not None:
        if node.payload.holders >> slot & 1:
            held += len(node.edge)
        node = node.parent
    return held
