"""The default: the worker where the request costs the cluster the fewest seconds.

    wait     until its prefill would start
    own      its prefill, given what the worker has cached
    harm     what it costs the others there: decodes held up by its prefill, every later step
             longer by its decode; and its own decode in those steps
    evict    recomputing what the worker must drop to fit it

Costs within `TIE` of the least are equal: they go to the worker with most of the prompt cached,
and among those by lot, so that no worker is everybody's first choice.
"""

import random
from dataclasses import dataclass

import numpy as np

from preble_router.candidates import Candidates, draw
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.worker_table import Column

TIE = 0.02
"""Relative; cost models are not better than that."""


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
        cost = sum(self.terms(candidates).values()) + candidates.barred
        least = float(cost.min())
        equals = np.flatnonzero(cost <= least + TIE * abs(least))
        if len(equals) > 1:
            cached = candidates.cached_tokens[equals]
            equals = equals[cached == cached.max()]
        slot = draw(equals, rng)
        cached_tokens = candidates.cached_tokens[slot]
        return Choice(
            slot,
            f"{cost[slot] * 1e3:.1f} ms: {cached_tokens:.0f} of "
            f"{candidates.request.num_tokens} tokens cached",
        )

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        weights, table = self.weights, candidates.table
        missed, cached = candidates.missed_tokens, candidates.cached_tokens
        output = candidates.predicted_output_tokens
        terms: dict[str, Column] = {}
        own = missed * (table.seconds_per_token + table.seconds_per_pair * (cached + 0.5 * missed))
        if weights.wait:
            terms["wait"] = weights.wait * table.wait_seconds
        if weights.own:
            terms["own"] = weights.own * own
        if weights.stall:
            terms["stall"] = weights.stall * own * table.num_decoding
        if weights.decode:
            growth = (
                table.step_growth + table.step_growth_per_context * candidates.request.num_tokens
            )
            step = table.step_seconds + 0.5 * growth * table.num_requests
            terms["decode"] = weights.decode * output * step
        if weights.evict:
            short = np.maximum(missed + output - table.free_tokens, 0.0)
            terms["evict"] = weights.evict * short * table.eviction_price
        return terms
