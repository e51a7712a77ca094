"""The default: the worker where the request costs the cluster the fewest seconds.

    wait     until its prefill would start
    own      its prefill, given what the worker has cached
    stall    decodes there that its prefill holds up
    decode   its own decode in the steps there, and what it adds to the others' steps
    evict    recomputing what the worker must drop to fit it

Workers whose costs differ by less than `TIE` of the prompt's whole prefill are equal: they are
told apart by how much of the prompt they have cached, and then by lot, so that no worker is
everybody's first choice.
"""

import random
from dataclasses import dataclass

import numpy as np

from preble_router.candidates import Candidates, draw
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.worker_table import Column

TIE = 0.02
"""Cost models are not better than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrebleWeights:
    """A factor per term; 0 switches the term off."""

    wait: float = 1.0
    own: float = 1.0
    stall: float = 0.2
    decode: float = 1.0
    evict: float = 1.0


class Preble(RoutingPolicy):
    name = "preble"

    def __init__(self, weights: PrebleWeights | None = None) -> None:
        self.weights = weights or PrebleWeights()

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        cost = self._cost(candidates)
        slot = int(cost.argmin())
        tolerance = TIE * candidates.request.num_tokens * candidates.table.seconds_per_token[slot]
        equals = (cost <= cost[slot] + tolerance).nonzero()[0]
        if len(equals) > 1:
            cached = candidates.cached_tokens[equals]
            slot = draw(equals[cached == cached.max()], rng)
        return Choice(slot, self._reason(candidates, slot, float(cost[slot])))

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        weights, table = self.weights, candidates.table
        own = self._own(candidates)
        need = candidates.missed_tokens + candidates.predicted_output_tokens
        return {
            "wait": weights.wait * table.wait_seconds,
            "own": weights.own * own,
            "stall": weights.stall * table.num_decoding * own,
            "decode": weights.decode * self._decode(candidates),
            "evict": weights.evict
            * table.eviction_price
            * np.maximum(need - table.free_tokens, 0.0),
        }

    def _cost(self, candidates: Candidates) -> Column:
        """The sum of `terms`, infinite for barred workers, in as few array operations as can be."""
        weights, table = self.weights, candidates.table
        cost = candidates.barred + self._own(candidates) * (
            weights.own + weights.stall * table.num_decoding
        )
        if weights.wait:
            cost += weights.wait * table.wait_seconds
        if weights.decode:
            cost += weights.decode * self._decode(candidates)
        if weights.evict and table.has_prices:
            need = candidates.missed_tokens + candidates.predicted_output_tokens
            short = np.maximum(need - table.free_tokens, 0.0)
            cost += weights.evict * table.eviction_price * short
        return cost

    def _own(self, candidates: Candidates) -> Column:
        """Seconds of prefill: attention's pairs are missed · (cached + missed / 2)."""
        table = candidates.table
        pairs = 0.5 * (candidates.request.num_tokens + candidates.cached_tokens)
        return candidates.missed_tokens * (table.seconds_per_token + table.seconds_per_pair * pairs)

    def _decode(self, candidates: Candidates) -> Column:
        table = candidates.table
        context = candidates.request.num_tokens
        return candidates.predicted_output_tokens * (
            table.decode_seconds + context * table.decode_seconds_per_context
        )

    def _reason(self, candidates: Candidates, slot: int, cost: float) -> str:
        cached = int(candidates.cached_tokens[slot])
        num_tokens = candidates.request.num_tokens
        return f"least cost {cost * 1e3:.1f} ms: {cached} of {num_tokens} tokens cached"
