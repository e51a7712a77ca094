"""How many copies of a hot prefix there should be: as many as its requests fill workers.

A prefix that one worker carries well stays where it is. One with more live requests than that is
worth a copy on another worker, though the request that makes it pays a whole prefill which alone it
would never choose to pay: every holder may be busy, another worker idle, and each single request
still be better off in the queue.

    key      a prompt's deepest node that is longer than all above it, as in E2
    copies   its live requests / mean live requests per worker, rounded

A copy is missing while there are fewer holders than that, and each of them has `LIVE_MIN` live
requests of the key on average. Present holders keep theirs; the first request that makes a copy
counts as a holder at once, so that each copy is made once.
"""

import math
from collections import Counter

import numpy as np

from preble_router.booking import Booking
from preble_router.candidates import Candidates
from preble_router.policies.e2_shift import key_prefix
from preble_router.residence import ClusterMatch, ClusterNode, assign
from preble_router.worker_table import Column

LIVE_MIN = 6
"""Live requests of a key that a worker carries without need of help."""


class CopyPlan:
    """The live requests of each key, and from them which copies are missing."""

    def __init__(self, *, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._live: Counter[ClusterNode] = Counter()
        self._keys: dict[str, ClusterNode] = {}

    def missing_tokens(self, candidates: Candidates) -> Column | None:
        """Tokens of the request's key on each slot that may make a missing copy, else 0.

        None where no copy is missing.
        """
        if not self._live:
            return None
        match = candidates.match
        key = _key_of(match)
        if key is None:
            return None
        live, holders = self._live.get(key, 0), key.payload.warm.bit_count()
        if live < LIVE_MIN * holders or not holders:
            return None
        table, num_workers = candidates.table, len(candidates.open_slots)
        copies = math.floor((live + 1) * num_workers / (table.live_total + 1.0) + 0.5)
        if holders >= min(copies, num_workers):
            return None
        num_pages = match.ends[match.nodes.index(key)]
        tokens: Column = np.full(table.num_slots, float(num_pages * self._page_tokens))
        assign(tokens, key.payload.warm, 0)
        return tokens

    def placed(self, booking: Booking, path_end: ClusterNode) -> None:
        key = key_prefix(path_end)
        if key is not None:
            self._keys[booking.request_id] = key
            self._live[key] += 1

    def closed(self, booking: Booking) -> None:
        key = self._keys.pop(booking.request_id, None)
        if key is not None:
            self._live[key] -= 1
            if not self._live[key]:
                del self._live[key]


def _key_of(match: ClusterMatch) -> ClusterNode | None:
    """The key of a prompt as far as it is matched."""
    key, above = None, 0
    for node in match.nodes:
        length = len(node.edge)
        if length > above:
            key = node
        above += length
    return key
