"""Log probabilities that nobody computed: a function of token and position, exact in float32."""

import numpy as np

from preble.page_keys import pack_tokens, unpack_tokens
from preble.types import Logprobs


def pretend_logprobs(
    tokens: bytes, num_top: int, *, start: int = 0, vocab_size: int = 50_000
) -> Logprobs:
    """Of packed `tokens`, the first at position `start` of its output."""
    chosen, ids, top = [], [], []
    for position, token in enumerate(unpack_tokens(tokens).tolist(), start=start):
        chosen.append(-(token % 31 + position % 16) / 8)
        ids += [(token + i) % vocab_size for i in range(num_top)]
        top += [-(i + position % 16) / 8 for i in range(num_top)]
    return Logprobs(_floats(chosen), pack_tokens(ids), _floats(top))


def _floats(values: list[float]) -> bytes:
    return np.array(values, dtype="<f4").tobytes()
