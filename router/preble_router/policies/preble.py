"""The default: the worker where the request costs the cluster the fewest seconds.

    wait     until its prefill would start
    own      its prefill, given what the worker has cached
    delay    the requests behind it, each of which waits for that prefill too: as many as have
             been queued per worker lately, and one at least
    stall    decodes there that its prefill holds up
    decode   its own decode in the steps there, and what it adds to the others' steps
    evict    recomputing what the worker must drop to fit it
    plan     credit for making a copy that the plan misses: what the copied part adds to own, delay
             and stall, since its later requests are served by it (see plan.py)

Workers whose costs differ by less than `TIE` of the prompt's whole prefill are equal. They are told
apart by how much of the prompt they have cached, then by who was given less work lately, since
where a prefix begins there its later requests will go, and then by lot, so that no worker is
everybody's first choice.

`delay` is what makes affinity grow with load: an idle cluster makes another copy to answer a
little sooner, a busy one does not. Its weight, and that of `stall`, were chosen by simulation.
"""

import random
from dataclasses import dataclass

import numpy as np

from preble.types import WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates, Slots, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.plan import CopyPlan
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.policies.recent_work import RecentWork
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable

TIE = 0.02
"""Cost models are not better than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrebleWeights:
    """A factor per term; 0 switches the term off."""

    wait: float = 1.0
    own: float = 1.0
    delay: float = 1.5
    stall: float = 0.05
    decode: float = 1.0
    evict: float = 1.0
    plan: float = 1.0


class Preble(RoutingPolicy):
    name = "preble"

    def __init__(self, weights: PrebleWeights | None = None) -> None:
        self.weights = weights or PrebleWeights()
        self._work = RecentWork()

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._plan = CopyPlan(page_tokens=tree.page_tokens)

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        cost = self._cost(candidates)
        slot = int(cost.argmin())
        least = float(cost[slot])
        whole = candidates.request.num_tokens * float(candidates.table.seconds_per_token[slot])
        equals = (cost <= least + TIE * whole).nonzero()[0]
        if len(equals) > 1:
            slot = self._break_tie(candidates, equals, rng)
        return Choice(slot, self._reason(candidates, slot, float(cost[slot])))

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        weights, table = self.weights, candidates.table
        own, credit = self._own(candidates), self._credit(candidates)
        need = candidates.missed_tokens + candidates.predicted_output_tokens
        return {
            "wait": weights.wait * table.wait_seconds,
            "own": weights.own * own,
            "delay": weights.delay * (1.0 + _mean_queue(candidates)) * own,
            "stall": weights.stall * table.num_decoding * own,
            "decode": self._decode(candidates, weights.decode),
            "evict": weights.evict
            * table.eviction_price
            * np.maximum(need - table.free_tokens, 0.0),
            "plan": np.zeros(table.num_slots) if credit is None else -credit,
        }

    def _cost(self, candidates: Candidates) -> Column:
        """The sum of `terms`, infinite for barred workers, in as few array operations as can be."""
        weights, table = self.weights, candidates.table
        per_second = weights.own + weights.delay * (1.0 + _mean_queue(candidates))
        cost = self._own(candidates)
        cost *= per_second + weights.stall * table.num_decoding
        if len(candidates.open_slots) < len(cost):
            cost += candidates.barred
        cost += table.wait_seconds if weights.wait == 1.0 else weights.wait * table.wait_seconds
        if weights.decode:
            cost += self._decode(candidates, weights.decode)
        if weights.evict and table.has_prices:
            need = candidates.missed_tokens + candidates.predicted_output_tokens
            short = np.maximum(need - table.free_tokens, 0.0)
            cost += weights.evict * table.eviction_price * short
        if weights.plan and (credit := self._credit(candidates)) is not None:
            cost -= credit
        return cost

    def _own(self, candidates: Candidates) -> Column:
        """Seconds of prefill; attention's pairs are missed · (cached + missed / 2)."""
        table = candidates.table
        ends = candidates.cached_tokens + candidates.request.num_tokens  # twice the mean context
        ends *= table.half_seconds_per_pair
        ends += table.seconds_per_token
        ends *= candidates.missed_tokens
        return ends

    def _credit(self, candidates: Candidates) -> Column | None:
        """What a missing copy would cost its maker, in seconds, per slot that may make it."""
        tokens = self._plan.missing_tokens(candidates)
        if tokens is None:
            return None
        weights, table = self.weights, candidates.table
        own = tokens * (table.seconds_per_token + table.half_seconds_per_pair * tokens)
        per_second = weights.own + weights.delay * (1.0 + _mean_queue(candidates))
        credit: Column = weights.plan * own * (per_second + weights.stall * table.num_decoding)
        return credit

    def _decode(self, candidates: Candidates, weight: float) -> Column:
        """Seconds of all its decode steps, those it adds to others included, times `weight`."""
        table = candidates.table
        seconds = table.decode_seconds_per_context * candidates.request.num_tokens
        seconds += table.decode_seconds
        seconds *= weight * candidates.predicted_output_tokens
        return seconds

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        self._work.reset(slot)

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        table, slot = candidates.table, booking.slot
        prefill = booking.prefill_tokens * float(table.seconds_per_token[slot])
        step_share = float(table.decode_seconds[slot] / table.num_requests[slot])
        seconds = prefill + booking.predicted_output_tokens * step_share
        self._work.add(slot, seconds, now=candidates.now)
        self._plan.placed(booking, path_end)

    def closed(self, booking: Booking, *, output_tokens: int | None, now: float) -> None:
        self._plan.closed(booking)

    # Steps

    def _break_tie(self, candidates: Candidates, slots: Slots, rng: random.Random) -> int:
        cached = candidates.cached_tokens[slots]
        return draw(self._work.least(slots[cached == cached[cached.argmax()]]), rng)

    def _reason(self, candidates: Candidates, slot: int, cost: float) -> str:
        cached = int(candidates.cached_tokens[slot])
        num_tokens = candidates.request.num_tokens
        return f"least cost {cost * 1e3:.1f} ms: {cached} of {num_tokens} tokens cached"


def _mean_queue(candidates: Candidates) -> float:
    """Requests before their first token, per open worker."""
    return candidates.table.queued_mean(candidates.now) / len(candidates.open_slots)
