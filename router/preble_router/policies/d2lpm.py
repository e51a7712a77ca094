"""Double deficit longest prefix match (arXiv 2501.14312): locality, balanced for each tenant alone.

A tenant has credit with every worker, and goes to the one with most of its prompt cached among
those with which it has any, where several have as much to the one with most credit. It pays there
for the prompt tokens that have to be computed, and for its output, as predicted until it has ended.
When it has credit nowhere, it gets a quantum everywhere. Which tenant is served first is the
workers' business: their local policy is to be `dlpm`.

Bound: what a tenant is charged by any two workers that are open to it all along differs by at most
a quantum and one largest request. So who asks the cluster for less than its share asks no worker
for more, but for as much: less than what `dlpm` lets it have at once.
"""

import random
from collections import OrderedDict

import numpy as np

from preble.fair_share import OUTPUT_WEIGHT, SAVINGS_TOKENS
from preble.types import WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates, draw
from preble_router.policies.policy import Choice, RoutingPolicy
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column

QUANTUM_TOKENS = SAVINGS_TOKENS / 2.0
"""Credit with each worker that a tenant gets when it has none anywhere: half of what `dlpm` lets it
have saved there."""
MAX_TENANTS = 10_000
"""More than that: who was placed longest ago is forgotten."""


class DoubleDeficit(RoutingPolicy):
    """
    Attributes:
        credit: in tokens per slot, by tenant, who was placed last at the end; negative for debts.
    """

    name = "d2lpm"
    shares_fairly = True

    def __init__(self) -> None:
        self.credit: OrderedDict[str, Column] = OrderedDict()

    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        credit = self._refilled(candidates)
        slots = candidates.open_slots[credit[candidates.open_slots] > 0.0]
        cached = candidates.cached_tokens[slots]
        slots = slots[cached == cached.max()]
        slots = slots[credit[slots] == credit[slots].max()]
        outstanding = candidates.table.outstanding_tokens[slots]
        slot = draw(slots[outstanding == outstanding.min()], rng)
        return Choice(slot, f"longest prefix with credit: {candidates.cached_tokens[slot]:.0f}")

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        return {"credit": self._refilled(candidates)}

    def _refilled(self, candidates: Candidates) -> Column:
        """The tenant's credit, after as many quanta as it takes to have some that it can use."""
        credit = np.zeros(candidates.table.num_slots)
        known = self.credit.get(candidates.request.tenant)
        if known is not None:
            credit[: len(known)] = known
        most = float(credit[candidates.open_slots].max())
        if most <= 0.0:
            credit += QUANTUM_TOKENS * (1.0 + -most // QUANTUM_TOKENS)
        return credit

    # Facts

    def joined(self, slot: int, spec: WorkerSpec) -> None:
        """Nobody owes the new worker anything."""
        for credit in self.credit.values():
            credit[slot : slot + 1] = 0.0

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:
        tenant = candidates.request.tenant
        credit = self.credit[tenant] = self._refilled(candidates)
        self.credit.move_to_end(tenant)
        if len(self.credit) > MAX_TENANTS:
            self.credit.popitem(last=False)
        credit[booking.slot] -= booking.prefill_tokens
        credit[booking.slot] -= OUTPUT_WEIGHT * booking.predicted_output_tokens

    def closed(self, booking: Booking, *, output_tokens: int | None, now: float) -> None:
        credit = self.credit.get(booking.tenant)
        if credit is not None:
            unused = booking.predicted_output_tokens - booking.output_tokens
            credit[booking.slot] += OUTPUT_WEIGHT * unused
