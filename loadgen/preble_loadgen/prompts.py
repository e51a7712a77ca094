"""The tokens of a trace's prompts. Pure: the same trace has the same tokens in every replay.

Token i of node v is `1000 + splitmix64(v << 32 | i) % (vocabulary - 2000)`, where v is the node's
id xor the trace's salt: ids of one trace stay apart, and two traces do not share by accident. The
margins keep special tokens out; vocabularies under 4,000 have a quarter of theirs instead.

Two nodes may begin with the same token by chance, once in a vocabulary; a page of 16 tokens never.
"""

import numpy as np
import numpy.typing as npt

from preble.page_keys import pack_tokens, unpack_tokens
from preble_loadgen.trace_request import TraceRequest

Tokens = npt.NDArray[np.uint32]


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of Steele, Lea and Flood's SplitMix64 for states `x`, elementwise."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


_SEED_FACTOR = 0x9E3779B1
"""Odd, and so different salts for the first 2**32 seeds."""


def seeded(salt: int, seed: int) -> int:
    """The salt of a trace in a run of that seed."""
    return (salt ^ seed * _SEED_FACTOR) & 0xFFFF_FFFF


class PromptMaker:
    """Makes token ids below `vocab_size` from what a trace says of a prompt.

    Args:
        vocab_size: at least 4.
        salt: 32 bits that set this trace's nodes apart from another's.
    """

    def __init__(self, *, vocab_size: int, salt: int = 0) -> None:
        assert vocab_size >= 4 and 0 <= salt < 1 << 32
        self._low = min(1000, vocab_size // 4)
        self._span = vocab_size - 2 * self._low
        self._vocab_size = vocab_size
        self._salt = salt

    def tokens(self, request: TraceRequest) -> Tokens:
        """The prompt's token ids, shape (prompt tokens,)."""
        if request.token_ids:
            return self._folded(unpack_tokens(request.token_ids))
        nodes = np.array([s.id ^ self._salt for s in request.segments], dtype=np.uint64)
        lengths = np.array([s.length for s in request.segments], dtype=np.int64)
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        states = np.repeat(nodes << np.uint64(32), lengths) + positions.astype(np.uint64)
        tokens = np.uint64(self._low) + splitmix64(states) % np.uint64(self._span)
        return tokens.astype(np.uint32)

    def _folded(self, tokens: Tokens) -> Tokens:
        """Ids that the model does not have become others, equal ones equal others."""
        beyond = tokens >= self._vocab_size
        if not beyond.any():
            return tokens
        return np.where(beyond, self._low + tokens % self._span, tokens).astype(np.uint32)


def every_nth(token_ids: bytes, factor: float) -> bytes:
    """About one of `factor` tokens, chosen by position alone, so that shared prefixes stay shared.

    At least one token remains.
    """
    tokens = unpack_tokens(token_ids)
    wanted = max(1, int(len(tokens) / factor + 1e-9))
    return pack_tokens(tokens[(np.arange(wanted) * factor).astype(np.int64)])
