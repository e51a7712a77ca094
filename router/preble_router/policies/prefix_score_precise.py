"""As llm-d scores with KV events: `prefix_score`, with the blocks that workers say they hold.

Sees exact pages, and what it routed itself and has no event of yet (here until the first token, at
most 10 s; there for 2 s); loads as polled every 50 ms. The weights are those of `prefix_score`.
"""

import random

from preble.types import WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.policies.polled_load import PolledLoad
from preble_router.policies.prefix_score import POLL_SECONDS, weighted
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable


class PrefixScorePrecise(RoutingPolicy):
    name = "prefix_score_precise"

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._load = PolledLoad(table, every_seconds=POLL_SECONDS)

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        terms = self.terms(candidates)
        score = terms["prefix"] + terms["queue"] + terms["kv"]
        slot = draw(candidates.least(-score), rng)
        cached = int(candidates.cached_tokens[slot])
        return Choice(slot, f"score {score[slot]:.2f}: {cached} tokens cached")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        return weighted(candidates, candidates.cached_tokens, self._load)

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        self._load.clear(slot)

    def left(self, slot: int) -> None:
        self._load.clear(slot)

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._load.placed(now=candidates.now)

    # Time

    def next_wakeup(self) -> float | None:
        return self._load.next_wakeup()

    def tick(self, *, now: float) -> None:
        self._load.tick(now=now)
