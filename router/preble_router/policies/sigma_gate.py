"""As AIBrix's `prefix-cache` does it: the best match within one deviation of the mean load.

    imbalanced  max - min > 8 requests running: the fewest running
    match       the highest match percentage, then the fewest running: the first that runs at most
                the mean plus one standard deviation
    otherwise   the fewest running

Sees its own notes of what it routed, dropped after 20 min without use, never evictions, and its own
requests in flight. A page stands for the 4-byte blocks of its table. Equals by lot.
"""

import random

from preble.page_keys import KEY_BYTES
from preble_router.booking import Booking
from preble_router.candidates import Candidates, draw
from preble_router.policies.approximate_tree import ApproximateTree
from preble_router.policies.in_flight import deviation, fewest_in_flight
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column

IMBALANCE = 8
DEVIATIONS = 1.0
IDLE_SECONDS = 20 * 60.0
PAGES_MAX = 1 << 20
"""Noted per worker, a bound that the peer lacks."""


class SigmaGate(RoutingPolicy):
    name = "sigma_gate"

    def __init__(self) -> None:
        self._tree = ApproximateTree(pages_max=PAGES_MAX)

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        load = candidates.table.num_live
        of_open = load[candidates.open_slots]
        if float(of_open.max() - of_open.min()) > IMBALANCE:
            return Choice(draw(fewest_in_flight(candidates), rng), "imbalanced: the fewest running")
        percent = self.terms(candidates)["match_percent"]
        mean, sigma = deviation(candidates)
        matched = [
            (-percent[slot], load[slot], rng.random(), slot)
            for slot in candidates.open_slots.tolist()
            if percent[slot] and load[slot] <= mean + DEVIATIONS * sigma
        ]
        if matched:
            slot = int(min(matched)[-1])
            return Choice(slot, f"{percent[slot]:.0f} % matched within a deviation of the mean")
        return Choice(draw(fewest_in_flight(candidates), rng), "no match: the fewest running")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        table, path = candidates.table, candidates.request.page_keys
        matched = self._tree.matched_pages(path, num_slots=table.num_slots)
        percent = matched * 100 * KEY_BYTES // max(len(path), 1)
        return {"match_percent": percent, "in_flight": table.num_live}

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._tree.expire(before=candidates.now - IDLE_SECONDS)
        self._tree.insert(booking.slot, candidates.request.page_keys, now=candidates.now)
        self._tree.trim_slot(booking.slot)

    def left(self, slot: int) -> None:
        self._tree.forget(slot)
