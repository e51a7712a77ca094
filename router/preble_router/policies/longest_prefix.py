"""The worker that has most of the prompt cached; among equals the least loaded."""

import random

import numpy as np

from preble_router.candidates import Candidates, draw
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.worker_table import Column


class LongestPrefix(RoutingPolicy):
    name = "longest_prefix"

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        holders = candidates.least(-candidates.cached_tokens)
        outstanding = candidates.table.outstanding_tokens[holders]
        slot = draw(holders[np.flatnonzero(outstanding == outstanding.min())], rng)
        return Choice(slot, f"longest prefix: {candidates.cached_tokens[slot]:.0f} tokens cached")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        return {"outstanding_tokens": candidates.table.outstanding_tokens}
