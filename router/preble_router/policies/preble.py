"""The default: the worker where the request costs the cluster the fewest seconds.

    wait     until its prefill would start
    own      its prefill, given what the worker has cached
    evict    recomputing, later, what the worker must drop to fit it
    delay    what own and evict cost others: whoever comes to that worker before its queue is empty
             again waits that much longer; that takes (wait + own + evict) / (1 - busy), as prefills
             go on coming that keep it busy for this share of its time (M/G/1, busy period)
    stall    decodes there that its prefill holds up
    decode   its own decode in the steps there, and what it adds to the others' steps
    plan     credit for making a copy that the plan misses: what the copied part adds to own, delay
             and stall, since its later requests are served by it (see plan.py)

Workers whose costs differ by less than `TIE` of the prompt's whole prefill are equal. They are told
apart by how much of the prompt they have cached, then by who was given less work lately, since
where a prefix begins there its later requests will go, and then by lot, so that no worker is
everybody's first choice.

`delay` is what makes affinity grow with load and with the length of a prefix, yet not towards a
worker whose queue is long while another is idle. Where prefill needs little of the workers' time,
queues empty soon, and decodes decide. Its weight is more than 1 because a copy also costs later, by
what it drives out and by the family that it parts, and because answers go on after a queue.
The weights of `delay` and `stall` were chosen by simulation.
"""

import random
from dataclasses import dataclass

import numpy as np

from preble.types import WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates, draw
from preble_router.cluster_tree import ClusterTree
from preble_router.policies.arrival_rate import ArrivalRate
from preble_router.policies.plan import CopyPlan
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.policies.recent_work import RecentWork
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable

TIE = 0.02
"""Cost models are not better than that."""
BUSY_MAX = 0.5
"""Share of a worker's time that prefill is taken to need at most; at 1 no queue would empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrebleWeights:
    """A factor per term; 0 switches the term off."""

    wait: float = 1.0
    own: float = 1.0
    delay: float = 4.0
    stall: float = 0.05
    decode: float = 1.0
    evict: float = 1.0
    plan: float = 1.0


class Preble(RoutingPolicy):
    name = "preble"

    def __init__(self, weights: PrebleWeights | None = None) -> None:
        self.weights = weights or PrebleWeights()
        self._own_weight = np.array(self.weights.own)
        self._stall_weight = np.array(self.weights.stall)
        self._work = RecentWork()
        self._arrivals = ArrivalRate()

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:
        self._plan = CopyPlan(page_tokens=tree.page_tokens)

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        cost = self._cost(candidates)
        slot = int(cost.argmin())
        whole = candidates.request.num_tokens * candidates.table.seconds_per_token.item(slot)
        (equals,) = (cost <= np.array(cost.item(slot) + TIE * whole)).nonzero()
        if len(equals) > 1:
            slot = draw(self._work.least(equals, candidates.cached_tokens), rng)
        return Choice(slot, self._reason(candidates, slot, cost.item(slot)))

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        weights, table = self.weights, candidates.table
        none = np.zeros(table.num_slots)
        own, evict = self._own(candidates), self._evict(candidates)
        work = own if evict is None else own + evict
        credit = self._credit(candidates, own, evict)
        return {
            "wait": weights.wait * candidates.wait_seconds,
            "own": weights.own * own,
            "evict": none if evict is None else evict,
            "delay": work * self._delay(candidates, work),
            "stall": weights.stall * table.num_decoding * own,
            "decode": self._decode(candidates, weights.decode),
            "plan": none if credit is None else -credit,
        }

    def _cost(self, candidates: Candidates) -> Column:
        """The sum of `terms`, infinite for barred workers, in as few array operations as can be."""
        weights = self.weights
        own, evict = self._own(candidates), self._evict(candidates)
        cost = self._burden(candidates, own, evict)
        if evict is not None:
            cost += evict
        if weights.plan and (credit := self._credit(candidates, own, evict)) is not None:
            cost -= credit
        wait = candidates.wait_seconds
        cost += wait if weights.wait == 1.0 else weights.wait * wait
        if weights.decode:
            cost += self._decode(candidates, weights.decode)
        if len(candidates.open_slots) < len(cost):
            cost += candidates.barred
        return cost

    def _burden(self, candidates: Candidates, own: Column, evict: Column | None) -> Column:
        """`own`, `delay` and `stall`, for any seconds of prefill."""
        burden: Column = candidates.table.num_decoding * self._stall_weight
        burden += self._own_weight
        burden *= own
        work = own if evict is None else own + evict
        delay = self._delay(candidates, work)
        delay *= work
        burden += delay
        return burden

    def _evict(self, candidates: Candidates) -> Column | None:
        """Seconds of prefill that room for the request costs later; None where it costs nothing."""
        table = candidates.table
        if not self.weights.evict or not table.has_prices:
            return None
        need = candidates.missed_tokens + candidates.predicted_output_tokens
        short = np.maximum(need - table.free_tokens, 0.0)
        seconds: Column = self.weights.evict * table.eviction_price * short
        return seconds

    def _delay(self, candidates: Candidates, work: Column) -> Column:
        """Requests that each second of `work` delays, per worker, times the weight."""
        num_workers = len(candidates.open_slots)
        requests, prefill = self._arrivals.per_second(candidates.now)
        idle = 1.0 - min(prefill / num_workers, BUSY_MAX)
        delay: Column = candidates.table.wait_seconds + work
        delay *= np.array(self.weights.delay * requests / num_workers / idle)
        return delay

    def _own(self, candidates: Candidates) -> Column:
        """Seconds of prefill; attention's pairs are missed · (cached + missed / 2)."""
        table = candidates.table
        ends = candidates.cached_tokens + candidates.length  # twice the mean context
        ends *= table.half_seconds_per_pair
        ends += table.seconds_per_token
        ends *= candidates.missed_tokens
        return ends

    def _credit(self, candidates: Candidates, own: Column, evict: Column | None) -> Column | None:
        """What a missing copy would cost its maker, in seconds, per slot that may make it."""
        tokens = self._plan.missing_tokens(candidates)
        if tokens is None:
            return None
        table = candidates.table
        copied = tokens * (table.seconds_per_token + table.half_seconds_per_pair * tokens)
        spared = self._burden(candidates, own, evict)
        spared -= self._burden(candidates, np.maximum(own - copied, 0.0), evict)
        spared *= self.weights.plan
        return spared

    def _decode(self, candidates: Candidates, weight: float) -> Column:
        """Seconds of all its decode steps, those it adds to others included, times `weight`."""
        table = candidates.table
        seconds = table.decode_seconds_per_context * candidates.length
        seconds += table.decode_seconds
        seconds *= np.array(weight * candidates.predicted_output_tokens)
        return seconds

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        self._work.reset(slot)

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        table, slot = candidates.table, booking.slot
        prefill = booking.prefill_tokens * table.seconds_per_token.item(slot)
        step_share = table.decode_seconds.item(slot) / table.num_requests.item(slot)
        seconds = prefill + booking.predicted_output_tokens * step_share
        self._work.add(slot, seconds, now=candidates.now)
        self._arrivals.count(candidates.now, prefill)
        self._plan.placed(booking, path_end)

    def closed(self, booking: Booking, *, output_tokens: int | None, now: float) -> None:
        self._plan.closed(booking)

    # Steps

    def _reason(self, candidates: Candidates, slot: int, cost: float) -> str:
        cached = int(candidates.cached_tokens.item(slot))
        num_tokens = candidates.request.num_tokens
        return f"least cost {cost * 1e3:.1f} ms: {cached} of {num_tokens} tokens cached"
