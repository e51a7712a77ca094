"""As llm-d's default profile scores: 3 parts prefix, 2 parts queue, 2 parts KV memory; the highest.

    prefix   share of the prompt's blocks that were routed there, of at most 256 blocks
    queue    requests waiting there, the fewest best      } as of the last poll, every 50 ms
    KV       memory in use there, the least best          }

Each is scaled so that the worst open worker has 0 and the best 1. Sees its own notes of what it
routed (64-character blocks, at most 31,250 per worker, the oldest out), never evictions, and polled
loads: what it placed since the last poll it does not see. A page stands for a block. Equals by lot.
"""

import random

import numpy as np

from preble.page_keys import KEY_BYTES
from preble.types import WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.approximate_tree import ApproximateTree
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.policies.polled_load import PolledLoad
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable

PREFIX_WEIGHT, QUEUE_WEIGHT, KV_WEIGHT = 3.0, 2.0, 2.0
BLOCKS_MAX = 256
NOTED_BLOCKS_MAX = 31_250
POLL_SECONDS = 0.05


class PrefixScore(RoutingPolicy):
    name = "prefix_score"

    def __init__(self) -> None:
        self._tree = ApproximateTree(pages_max=NOTED_BLOCKS_MAX)

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._load = PolledLoad(table, every_seconds=POLL_SECONDS)

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        terms = self.terms(candidates)
        score = terms["prefix"] + terms["queue"] + terms["kv"]
        slot = draw(candidates.least(-score), rng)
        return Choice(slot, f"score {score[slot]:.2f}, {terms['prefix'][slot]:.2f} for its prefix")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        return weighted(candidates, self._matched_pages(candidates), self._load)

    def _matched_pages(self, candidates: Candidates) -> Column:
        path = _head(candidates)
        return self._tree.matched_pages(path, num_slots=candidates.table.num_slots)

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        self._load.clear(slot)

    def left(self, slot: int) -> None:
        self._tree.forget(slot)
        self._load.clear(slot)

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._load.placed(now=candidates.now)
        self._tree.insert(booking.slot, _head(candidates), now=candidates.now)
        self._tree.trim_slot(booking.slot)

    # Time

    def next_wakeup(self) -> float | None:
        return self._load.next_wakeup()

    def tick(self, *, now: float) -> None:
        self._load.tick(now=now)


def weighted(candidates: Candidates, cached_pages: Column, load: PolledLoad) -> dict[str, Column]:
    """The three weighted scores per slot."""
    return {
        "prefix": PREFIX_WEIGHT * _scaled(cached_pages, candidates),
        "queue": QUEUE_WEIGHT * _scaled(-load.waiting, candidates),
        "kv": KV_WEIGHT * _scaled(-load.kv_use, candidates),
    }


def _scaled(column: Column, candidates: Candidates) -> Column:
    """`column` with the least of the open slots at 0 and the most at 1; all 0 if they are equal."""
    of_open = column[candidates.open_slots]
    least, most = float(of_open.min()), float(of_open.max())
    return (column - least) / (most - least) if most > least else np.zeros(len(column))


def _head(candidates: Candidates) -> bytes:
    return candidates.request.page_keys[: BLOCKS_MAX * KEY_BYTES]
