"""The worker with the fewest outstanding tokens. Knows load, not caches."""

import random

from preble_router.candidates import Candidates, draw
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.worker_table import Column


class LeastLoaded(RoutingPolicy):
    name = "least_loaded"

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        outstanding = candidates.table.outstanding_tokens
        slot = draw(candidates.least(outstanding), rng)
        return Choice(slot, f"least loaded: {outstanding[slot]:.0f} tokens outstanding")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        return {"outstanding_tokens": candidates.table.outstanding_tokens}
