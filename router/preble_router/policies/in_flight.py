"""Choices by requests in flight, the one load that a router needs no worker to know."""

import random

import numpy as np

from preble_router.candidates import Candidates, Slots
from preble_router.worker_table import Column


def fewest(slots: Slots, load: Column) -> Slots:
    """Those of `slots` that have least of `load`, in order."""
    of_slots = load[slots]
    least: Slots = slots[of_slots == of_slots.min()]
    return least


def fewest_in_flight(candidates: Candidates) -> Slots:
    """The open slots with the fewest of the router's requests in flight, ascending."""
    return fewest(candidates.open_slots, candidates.table.num_live)


def lighter_of_two(slots: Slots, load: Column, rng: random.Random) -> int:
    """The one with less of `load` of two of `slots` drawn by lot, the first drawn of equals."""
    if len(slots) == 1:
        return int(slots[0])
    first, second = (int(slots[i]) for i in rng.sample(range(len(slots)), 2))
    return first if load[first] <= load[second] else second


def deviation(candidates: Candidates) -> tuple[float, float]:
    """Mean and standard deviation of the requests in flight on the open slots."""
    load = candidates.table.num_live[candidates.open_slots]
    return float(np.mean(load)), float(np.std(load))
