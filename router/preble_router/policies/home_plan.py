"""Which prefixes are hot, and which workers are their homes: longest processing time first."""

import math
from dataclasses import dataclass

RATE_MIN = 2.0
"""What comes once is no key."""
KEY_TOKENS_MIN = 256
WARM_SHARE = 0.8
"""Of a worker's cache, for the prefixes it is home of."""

Prefix = tuple[int, int, int]
"""Digest of a prefix, its tokens, and the digest of half of it, 0 for the shortest."""


@dataclass(frozen=True, slots=True)
class HotKey:
    """A key prefix by a digest, with its length in tokens and its rate."""

    digest: int
    tokens: int
    requests: float


def keys_of(rates: dict[Prefix, float]) -> list[HotKey]:
    """Of the prefixes with these rates, those that come again in requests no longer key begins."""
    begun: dict[int, float] = {}
    keys = []
    for prefix in sorted(rates, key=lambda prefix: -prefix[1]):
        digest, tokens, above = prefix
        own = rates[prefix] - begun.get(digest, 0.0)
        if own >= RATE_MIN:
            keys.append(HotKey(digest, tokens, own))
            begun[digest] = rates[prefix]
        begun[above] = begun.get(above, 0.0) + begun.get(digest, 0.0)
    return keys


def plan_homes(keys: list[HotKey], capacities: dict[int, int]) -> dict[int, list[int]]:
    """Slots of the homes of each digest admitted, given the cache of each slot in tokens."""
    hot = sorted(keys, key=lambda key: (-key.requests, key.digest))
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
