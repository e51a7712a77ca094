"""One request and every worker it could go to, as a routing policy sees them."""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preble_router.booking import Booking
from preble_router.residence import ClusterMatch, ClusterNode
from preble_router.stimuli import CandidateTerms, Placement, RouteRequest
from preble_router.worker_table import Column, WorkerTable

Slots = npt.NDArray[np.intp]
Scalar = npt.NDArray[np.float64]


@dataclass(slots=True, kw_only=True, eq=False)
class Candidates:
    """What a policy chooses from. Columns have one element per slot, open or not.

    Attributes:
        open_slots: the slots that may be chosen, ascending, never empty.
        barred: 0 for those, infinity for all others: add it to a cost.
        cached_tokens: prompt tokens each worker will find in its cache, at most all but one. One
            that it finds in host memory counts for as much as copying saves of computing it.
        missed_tokens: prompt tokens each worker will have to compute, all that are not cached.
        held_tokens: prompt tokens each worker will find, wherever.
        length: of the prompt, in an array without dimensions: NumPy takes twice as long to multiply
            a short column with a Python number.
        wait_seconds: until its prefill would start: what the table says, less what is queued with
            a lower priority.
        table: the state of all workers.
        match: the request's path in the tree, before it was placed.
        predicted_output_tokens: expected length of the answer.
    """

    request: RouteRequest
    now: float
    open_slots: Slots
    barred: Column
    cached_tokens: Column
    missed_tokens: Column
    held_tokens: Column
    length: Scalar
    wait_seconds: Column
    table: WorkerTable
    match: ClusterMatch
    predicted_output_tokens: float

    def least(self, cost: Column) -> Slots:
        """The open slots with the least `cost`, ascending."""
        cost = cost + self.barred
        return np.flatnonzero(cost == cost.min())

    def first_token_seconds(self, slot: int) -> float:
        """Until the first token there, by the table: the queue, and the prompt's own prefill."""
        table = self.table
        context = self.cached_tokens.item(slot) + self.request.num_tokens
        per_token = table.seconds_per_token.item(slot)
        per_token += context * table.half_seconds_per_pair.item(slot)
        return self.wait_seconds.item(slot) + self.missed_tokens.item(slot) * per_token

    def booking(self, slot: int, *, path_end: ClusterNode, expected_until: float) -> Booking:
        """The attempt as it weighs on `slot`, whose row does not count it yet."""
        request = self.request
        return Booking(
            request_id=request.request_id,
            attempt=request.attempt,
            priority=request.priority,
            tenant=request.tenant,
            slot=slot,
            prompt_tokens=request.num_tokens,
            prefill_tokens=request.num_tokens - int(self.cached_tokens.item(slot)),
            cached_tokens=int(self.held_tokens.item(slot)),
            predicted_output_tokens=self.predicted_output_tokens,
            placed_at=self.now,
            expected_until=expected_until,
            path_end=path_end,
            first_token_seconds=self.first_token_seconds(slot),
            seconds_per_output_token=self.table.decode_seconds.item(slot),
        )

    def placement(self, slot: int, reason: str) -> Placement:
        """What is answered when `slot` is chosen."""
        return Placement(
            request_id=self.request.request_id,
            attempt=self.request.attempt,
            worker_id=self.table.worker_ids[slot],
            cached_tokens=int(self.held_tokens.item(slot)),
            predicted_output_tokens=self.predicted_output_tokens,
            reason=reason,
        )

    def listed(self, terms: dict[str, Column]) -> tuple[CandidateTerms, ...]:
        """Every open slot as a record, with its element of each of `terms`."""
        return tuple(
            CandidateTerms(
                worker_id=self.table.worker_ids[slot],
                cached_tokens=int(self.held_tokens[slot]),
                terms={name: float(column[slot]) for name, column in terms.items()},
            )
            for slot in self.open_slots.tolist()
        )


def draw(slots: Slots | list[int], rng: random.Random) -> int:
    """One of `slots`, with equal chances; nothing is drawn where there is no choice."""
    if len(slots) == 1:
        return int(slots[0])
    return int(slots[int(rng.random() * len(slots))])
