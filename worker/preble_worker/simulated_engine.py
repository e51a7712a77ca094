"""The engine of sleeps: time by the cost model, tokens by a hash. It computes nothing.

Token i of a request is a hash of (prompt, seed, i), so that a lost, doubled or swapped token shows,
and an attempt resumed on another worker goes on with the same tokens.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from preble.cost import CostModel
from preble_worker.batch import Batch, predicted_seconds

LOWEST_TOKEN = 3
"""Ids below are left out: most vocabularies begin with their special tokens."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class SimulatedEngine:
    """Sleeps each batch's predicted duration and draws tokens from hashes.

    Args:
        excluded: token ids that are never drawn, such as the end of sequence.
        time_scale: multiplies every sleep; 0 never sleeps.
        sleep: called with seconds.
    """

    def __init__(
        self,
        cost: CostModel,
        vocab_size: int,
        *,
        excluded: Sequence[int] = (),
        time_scale: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cost = cost
        self._vocab_size = vocab_size
        self._excluded = _drawable_exclusions(excluded, vocab_size)
        self._time_scale = time_scale
        self._sleep = sleep

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        """One token per row with `samples`, after the time a real device would have taken."""
        seconds = predicted_seconds(self._cost, batch) * self._time_scale
        if seconds > 0.0:
            self._sleep(seconds)
        tables, slots = batch.tables, batch.slots[batch.samples]
        return _draw(
            tables.prompt_hash[slots],
            tables.seed[slots],
            tables.output_position[slots].astype(np.uint64),
            self._vocab_size,
            self._excluded,
        )


def simulated_tokens(
    prompt: bytes,
    seed: int,
    count: int,
    vocab_size: int,
    *,
    start: int = 0,
    excluded: Sequence[int] = (),
) -> npt.NDArray[np.int64]:
    """Output tokens `start` to `start + count` that a simulated engine draws for packed `prompt`.

    `prompt` is the request's own, without output that earlier attempts delivered.
    """
    return _draw(
        np.full(count, xxhash.xxh3_64_intdigest(prompt), dtype=np.uint64),
        np.full(count, seed, dtype=np.uint64),
        np.arange(start, start + count, dtype=np.uint64),
        vocab_size,
        _drawable_exclusions(excluded, vocab_size),
    )


def _drawable_exclusions(excluded: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Those of `excluded` that could be drawn at all, ascending."""
    drawable = tuple(sorted({i for i in excluded if LOWEST_TOKEN <= i < vocab_size}))
    assert LOWEST_TOKEN + len(drawable) < vocab_size, "nothing is left to draw"
    return drawable


def _draw(
    prompt_hashes: npt.NDArray[np.uint64],
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.uint64],
    vocab_size: int,
    excluded: tuple[int, ...],
) -> npt.NDArray[np.int64]:
    """Uniform over the ids from LOWEST_TOKEN up to `vocab_size`, but for `excluded`."""
    streams = _splitmix64(prompt_hashes ^ _splitmix64(seeds))
    span = np.uint64(vocab_size - LOWEST_TOKEN - len(excluded))
    tokens = (_splitmix64(streams + positions * _GOLDEN) % span).astype(np.int64) + LOWEST_TOKEN
    for token in excluded:
        tokens += tokens >= token
    return tokens


def _splitmix64(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of splitmix64 (Steele, Lea and Flood, 2014), element by element."""
    z = state + _GOLDEN
    z = (z ^ (z >> _SHIFTS[0])) * _MIX[0]
    z = (z ^ (z >> _SHIFTS[1])) * _MIX[1]
    return z ^ (z >> _SHIFTS[2])
