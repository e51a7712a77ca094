"""Cache events with something in them changed, as a bug on the way would."""

import random
from dataclasses import replace

from preble.events import CacheEvents, Evicted, Stored
from preble.page_keys import KEY_BYTES


def corrupted(batch: CacheEvents, rng: random.Random) -> CacheEvents:
    """Its number, its epoch, or one path in it is another."""
    kind = rng.randrange(5) if batch.events else rng.randrange(2)
    if kind == 0:
        return replace(batch, seq=rng.randrange(1, 1 << 40))
    if kind == 1:
        return replace(batch, epoch=rng.randrange(1 << 63))
    at = rng.randrange(len(batch.events))
    event = batch.events[at]
    path = bytearray(event.path)
    if kind == 2:
        path = path[: -rng.randrange(1, KEY_BYTES)]
    elif kind == 3:
        path[rng.randrange(len(path))] ^= 1 << rng.randrange(8)
    else:
        path = path[: -KEY_BYTES or None]
    wrong = Stored(bytes(path)) if rng.random() < 0.5 else Evicted(bytes(path), rng.randrange(4))
    return replace(batch, events=(*batch.events[:at], wrong, *batch.events[at + 1 :]))
