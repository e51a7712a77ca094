"""As smg's `cache_aware` with KV events does it: the best holder that is not overloaded.

    out         8 requests or more waiting, or 0.8 or more of the KV memory in use (unless all are)
    holders     of more than 0.3 of the prompt, by (cached pages, fewest in flight), but who has
                min(64, max(4, 2 deviations)) more than the mean and over 1.5 times it is skipped
    otherwise   the fewest in flight, then the fewest ever given, then the first; a worker that
                joined others less than 60 s ago gets 25 % of these

Sees what workers say they hold (not what is on its way there), their last reports, and its own
requests in flight.
"""

import random

import numpy as np

from preble.page_keys import KEY_BYTES
from preble.types import LoadReport, WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates, Slots
from preble_router.policies.in_flight import deviation
from preble_router.policies.path_masks import held_pages
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column

MATCH_THRESHOLD = 0.3
EXCESS_MAX, EXCESS_MIN, EXCESS_DEVIATIONS = 64.0, 4.0, 2.0
EXCESS_RELATIVE = 1.5
WAITING_MAX = 8
KV_USE_MAX = 0.8
NEW_SECONDS = 60.0
NEW_SHARE = 0.25


class CacheAwareSpill(RoutingPolicy):
    name = "cache_aware_spill"

    def __init__(self) -> None:
        self._given: dict[int, int] = {}
        self._joined_at: dict[int, float | None] = {}

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        reports = candidates.table.reports
        fit = [slot for slot in candidates.open_slots.tolist() if not _is_out(reports[slot])]
        slots = np.array(fit, np.intp) if fit else candidates.open_slots
        holder = self._best_holder(candidates, slots)
        return holder or self._place_miss(candidates, slots, rng)

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        table = candidates.table
        held = held_pages(candidates.match, num_slots=table.num_slots)
        return {"in_flight": table.num_live, "held_pages": held}

    def _best_holder(self, candidates: Candidates, slots: Slots) -> Choice | None:
        load = candidates.table.num_live
        held = held_pages(candidates.match, num_slots=len(load))
        least = MATCH_THRESHOLD * len(candidates.request.page_keys) / KEY_BYTES
        mean, sigma = deviation(candidates)
        excess = min(EXCESS_MAX, max(EXCESS_MIN, EXCESS_DEVIATIONS * sigma))
        for slot in sorted(slots.tolist(), key=lambda slot: (-held[slot], load[slot])):
            if held[slot] <= least:
                return None
            if load[slot] - mean <= excess or load[slot] <= EXCESS_RELATIVE * mean:
                return Choice(slot, f"holds {held[slot]:.0f} pages")
        return None

    def _place_miss(self, candidates: Candidates, slots: Slots, rng: random.Random) -> Choice:
        new = [slot for slot in slots.tolist() if self._is_new(slot, candidates.now)]
        if 0 < len(new) < len(slots) and rng.random() < NEW_SHARE:
            return Choice(self._least(candidates, new), "no holder: a new worker")
        return Choice(self._least(candidates, slots.tolist()), "no holder: the fewest in flight")

    def _least(self, candidates: Candidates, slots: list[int]) -> int:
        load = candidates.table.num_live
        return min(slots, key=lambda slot: (load[slot], self._given.get(slot, 0), slot))

    def _is_new(self, slot: int, now: float) -> bool:
        joined_at = self._joined_at.get(slot)
        return joined_at is None or now < joined_at + NEW_SECONDS

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        self._given[slot] = 0
        self._joined_at[slot] = None

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        self._given[booking.slot] += 1
        for slot, joined_at in self._joined_at.items():
            if joined_at is None:
                self._joined_at[slot] = candidates.now

    def left(self, slot: int) -> None:
        del self._given[slot], self._joined_at[slot]


def _is_out(report: LoadReport) -> bool:
    pages = report.free_pages + report.cached_pages + report.used_pages
    return report.num_waiting >= WAITING_MAX or report.used_pages >= KV_USE_MAX * max(pages, 1)
