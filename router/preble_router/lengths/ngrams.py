"""A prompt as a vector without a model: its n-grams, hashed.

Prompts with many token sequences in common have vectors that point the same way. Each n-gram of
1, 2 and 3 tokens adds +1 or -1, by its hash, to one of `DIMENSIONS` elements (Weinberger et al.,
"Feature Hashing for Large Scale Multitask Learning", 2009); counts are damped by their root, so
that a word that is everywhere does not hide the others.
"""

import numpy as np
import numpy.typing as npt

from preble.page_keys import TOKEN_BYTES, unpack_tokens
from preble_router.lengths.predictor import Vector

DIMENSIONS = 128
MAX_TOKENS = 512
"""Of a longer prompt only its end is looked at: the question, behind what is given with it."""

_SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
_MIX = np.uint64(0xFF51AFD7ED558CCD)


def hashed_ngrams(tokens: bytes) -> Vector:
    """The vector of a packed prompt, unit length, shape (`DIMENSIONS`,)."""
    ids = unpack_tokens(tokens[-MAX_TOKENS * TOKEN_BYTES :]).astype(np.uint64)
    hashes = np.concatenate([_hashed(ids, n) for n in range(1, 4)])
    places = (hashes % np.uint64(DIMENSIONS)).astype(np.intp)
    signs = np.where(hashes >> np.uint64(63), 1.0, -1.0)
    counts = np.bincount(places, weights=signs, minlength=DIMENSIONS)
    vector = np.sign(counts) * np.sqrt(np.abs(counts))
    length = float(np.linalg.norm(vector))
    return (vector / length if length else vector).astype(np.float32)


def _hashed(ids: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """A hash of each run of `n` tokens; empty where there is none."""
    count = max(len(ids) - n + 1, 0)
    mixed = np.full(count, _SEEDS[n - 1], dtype=np.uint64)
    for i in range(n):
        mixed = (mixed ^ ids[i : i + count]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    return mixed
