"""Which workers are the homes of which hot prefixes: longest processing time first."""

import math
from dataclasses import dataclass

REQUESTS_MIN = 2
"""A prefix asked for once is not shared."""
WARM_SHARE = 0.5
"""Of a worker's cache, for the prefixes it is home of."""


@dataclass(frozen=True, slots=True)
class HotKey:
    """A key prefix by the digest of its path, with its length in tokens and its requests."""

    digest: int
    tokens: int
    requests: int


def plan_homes(keys: list[HotKey], capacities: dict[int, int]) -> dict[int, list[int]]:
    """Slots of the homes of each digest admitted, given the cache of each slot in tokens."""
    hot = sorted(
        (key for key in keys if key.requests >= REQUESTS_MIN),
        key=lambda key: (-key.requests, key.digest),
    )
    if not hot or not capacities:
        return {}
    mean_tokens = sum(key.tokens for key in hot) / len(hot)
    free = {
        slot: max(int(WARM_SHARE * capacity / mean_tokens), 1)
        for slot, capacity in capacities.items()
    }
    target = sum(key.requests for key in keys) / len(capacities)
    copies = _admit(hot, target, num_workers=len(capacities), num_slots=sum(free.values()))
    loads = dict.fromkeys(sorted(capacities), 0.0)
    homes: dict[int, list[int]] = {}
    for key, count in sorted(copies, key=lambda item: -item[0].requests / item[1]):
        for _ in range(count):
            open_slots = [s for s in loads if free[s] and s not in homes.get(key.digest, [])]
            if not open_slots:
                break
            slot = min(open_slots, key=lambda slot: loads[slot])
            homes.setdefault(key.digest, []).append(slot)
            loads[slot] += key.requests / count
            free[slot] -= 1
    return homes


def _admit(
    hot: list[HotKey], target: float, *, num_workers: int, num_slots: int
) -> list[tuple[HotKey, int]]:
    """The hottest keys with their number of copies, as far as the warm slots go."""
    admitted = []
    for key in hot:
        count = min(max(1, math.ceil(key.requests / target)), num_workers)
        if count > num_slots:
            break
        num_slots -= count
        admitted.append((key, count))
    return admitted
