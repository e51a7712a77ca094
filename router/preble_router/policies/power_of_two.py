"""The less loaded of two workers drawn by lot: nearly as even as the least loaded, and no herds."""

import random

from preble_router.candidates import Candidates
from preble_router.policies.in_flight import lighter_of_two
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.worker_table import Column


class PowerOfTwo(RoutingPolicy):
    name = "power_of_two"

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        outstanding = candidates.table.outstanding_tokens
        slots = candidates.open_slots
        if len(slots) == 1:
            return Choice(int(slots[0]), "the only worker")
        slot = lighter_of_two(slots, outstanding, rng)
        return Choice(slot, f"the less loaded of two: {outstanding[slot]:.0f} tokens outstanding")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        return {"outstanding_tokens": candidates.table.outstanding_tokens}
