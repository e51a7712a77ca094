"""Each worker in turn. Knows neither load nor caches."""

import random

from preble_router.booking import Booking
from preble_router.candidates import Candidates
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode


class RoundRobin(RoutingPolicy):
    name = "round_robin"

    def __init__(self) -> None:
        self._last = -1

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        slots = candidates.open_slots
        later = slots[slots > self._last]
        return Choice(int(later[0] if len(later) else slots[0]), "next in turn")

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._last = booking.slot
