"""The tokens of an engine that computes nothing: hashes of (prompt, seed, position).

So a lost, doubled or swapped token shows, and an attempt resumed on another worker goes on with
the same tokens.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from preble_worker.batch import Batch
from preble_worker.logprobs import LogprobColumns

UInts = npt.NDArray[np.uint64]

LOWEST_TOKEN = 3
"""Ids below are left out: most vocabularies begin with their special tokens."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class TokenSource:
    """Draws the tokens of one scheduler's batches.

    Args:
        excluded: token ids that are never drawn, such as the end of sequence.
    """

    def __init__(self, vocab_size: int, *, excluded: Sequence[int] = ()) -> None:
        self._vocab_size = vocab_size
        self._excluded = _drawable_exclusions(excluded, vocab_size)
        self._composition = -1
        self._streams = np.zeros(0, dtype=np.uint64)

    def fill_in(self, logprobs: LogprobColumns) -> None:
        """With what probability tokens are drawn: all with the same."""
        num_top = logprobs.top.shape[1]
        ids = np.arange(LOWEST_TOKEN, LOWEST_TOKEN + num_top + len(self._excluded), dtype=np.uint32)
        logprobs.top_tokens[:] = ids[~np.isin(ids, self._excluded)][:num_top]
        log_probability = -np.log(self._vocab_size - LOWEST_TOKEN - len(self._excluded))
        logprobs.chosen[:] = log_probability
        logprobs.top[:] = log_probability

    def draw(self, batch: Batch, *, num_steps: int = 1) -> npt.NDArray[np.int64]:
        """Tokens of `num_steps` steps of the same composition, `batch` the first.

        Shape (num_steps, rows with `samples`).
        """
        tables = batch.tables
        all_sample = batch.num_decodes == len(batch.slots)
        slots = batch.slots if all_sample else batch.slots[batch.samples]
        positions = tables.output_position[slots].astype(np.uint64)
        if num_steps > 1:
            positions = positions + np.arange(num_steps, dtype=np.uint64)[:, np.newaxis]
        streams = self._streams_of(batch)
        if not all_sample:
            streams = streams[batch.samples]
        tokens = _draw(streams, positions, self._vocab_size, self._excluded)
        return tokens.reshape(num_steps, len(slots))

    def _streams_of(self, batch: Batch) -> UInts:
        """Of all rows; they stay while the composition does."""
        if batch.composition != self._composition:
            self._composition = batch.composition
            tables, slots = batch.tables, batch.slots
            self._streams = _stream(tables.prompt_hash[slots], tables.seed[slots])
        return self._streams


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
    prompt_hash = np.full(1, xxhash.xxh3_64_intdigest(prompt), dtype=np.uint64)
    return _draw(
        _stream(prompt_hash, np.full(1, seed, dtype=np.uint64)),
        np.arange(start, start + count, dtype=np.uint64),
        vocab_size,
        _drawable_exclusions(excluded, vocab_size),
    )


def _drawable_exclusions(excluded: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Those of `excluded` that could be drawn at all, ascending."""
    drawable = tuple(sorted({i for i in excluded if LOWEST_TOKEN <= i < vocab_size}))
    assert LOWEST_TOKEN + len(drawable) < vocab_size, "nothing is left to draw"
    return drawable


def _stream(prompt_hashes: UInts, seeds: UInts) -> UInts:
    """From what state each request draws."""
    return _splitmix64(prompt_hashes ^ _splitmix64(seeds))


def _draw(
    streams: UInts, positions: UInts, vocab_size: int, excluded: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Uniform over the ids from LOWEST_TOKEN up to `vocab_size`, but for `excluded`."""
    span = np.uint64(vocab_size - LOWEST_TOKEN - len(excluded))
    tokens = (_splitmix64(streams + positions * _GOLDEN) % span).astype(np.int64) + LOWEST_TOKEN
    for token in excluded:
        tokens += tokens >= token
    return tokens


def _splitmix64(state: UInts) -> UInts:
    """The output function of splitmix64 (Steele, Lea and Flood, 2014), element by element."""
    z = state + _GOLDEN
    z = (z ^ (z >> _SHIFTS[0])) * _MIX[0]
    z = (z ^ (z >> _SHIFTS[1])) * _MIX[1]
    return z ^ (z >> _SHIFTS[2])
