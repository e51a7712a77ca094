"""One request and every worker it could go to, as a routing policy sees them."""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preble_router.residence import ClusterMatch
from preble_router.stimuli import CandidateTerms, RouteRequest
from preble_router.worker_table import Column, WorkerTable

Slots = npt.NDArray[np.intp]


@dataclass(slots=True, kw_only=True, eq=False)
class Candidates:
    """What a policy chooses from. Columns have one element per slot, open or not.

    Attributes:
        open_slots: the slots that may be chosen, ascending, never empty.
        barred: 0 for those, infinity for all others: add it to a cost.
        cached_tokens: prompt tokens each worker will find in its cache, at most all but one.
        missed_tokens: prompt tokens each worker will have to compute.
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
    table: WorkerTable
    match: ClusterMatch
    predicted_output_tokens: float

    def least(self, cost: Column) -> Slots:
        """The open slots with the least `cost`, ascending."""
        cost = cost + self.barred
        return np.flatnonzero(cost == cost.min())

    def listed(self, terms: dict[str, Column]) -> tuple[CandidateTerms, ...]:
        """Every open slot as a record, with its element of each of `terms`."""
        return tuple(
            CandidateTerms(
                worker_id=self.table.worker_ids[slot],
                cached_tokens=int(self.cached_tokens[slot]),
                terms={name: float(column[slot]) for name, column in terms.items()},
            )
            for slot in self.open_slots.tolist()
        )


def draw(slots: Slots, rng: random.Random) -> int:
    """One of `slots`, with equal chances; nothing is drawn where there is no choice."""
    if len(slots) == 1:
        return int(slots[0])
    return int(slots[int(rng.random() * len(slots))])
