"""Who of many equal workers is next: few and many are told apart by different means."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preble_router.policies.recent_work import RecentWork


@given(st.integers(1, 80), st.integers(0, 2**32))
def test_those_with_most_cached_and_of_them_with_least_work(num_slots: int, seed: int) -> None:
    rng = random.Random(seed)
    work, given_to = RecentWork(), [0.0] * num_slots
    for slot in range(num_slots):
        work.reset(slot)
        if rng.random() < 0.7:
            given_to[slot] = float(rng.randint(1, 3))
            work.add(slot, given_to[slot], now=0.0)
    cached = np.array([float(rng.randint(0, 2) * 16) for _ in range(num_slots)])
    slots = sorted(rng.sample(range(num_slots), rng.randint(1, num_slots)))

    first = min((-cached[slot], given_to[slot]) for slot in slots)
    expected = [slot for slot in slots if (-cached[slot], given_to[slot]) == first]
    assert work.least(np.array(slots, np.intp), cached) == expected
