"""Any worker, with equal chances. The baseline that no policy may lose to."""

import random

from preble_router.candidates import Candidates, draw
from preble_router.policies.policy import Choice, RoutingPolicy


class RandomChoice(RoutingPolicy):
    name = "random"

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        return Choice(draw(candidates.open_slots, rng), "drawn by lot")
