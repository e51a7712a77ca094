"""Log probabilities in the shapes of OpenAI's API, each token's beside the text it is part of."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preble.page_keys import unpack_tokens
from preble.types import FinishReason
from preble_router.text_generation import TextDelta
from preble_router.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""Stands for all below, as in OpenAI's API: JSON has no minus infinity."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an output.

    Attributes:
        offset: characters of the output before it.
        top: the likeliest tokens in its place and their log probabilities, likeliest first.
    """

    token_id: int
    logprob: float
    offset: int
    top: list[tuple[int, float]]


class ChoiceLogprobs:
    """Keeps the log probabilities of one output until the text they belong to is given out.

    A token belongs to the output if its text begins before the output's text ends: the token that
    ended it does not, nor does what follows the beginning of a stop string. All tokens of a
    character that is split among several come with that character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = tokenizer.stream()
        self._num_decoded = 0
        self._num_given = 0
        self._waiting: deque[TokenLogprob] = deque()

    def due(self, delta: TextDelta) -> list[TokenLogprob]:
        """Those that belong to the text of `delta`."""
        self._read(delta)
        self._num_given += len(delta.text)
        if delta.finish_reason not in (None, FinishReason.STOP):
            due, self._waiting = list(self._waiting), deque()
            return due
        due = []
        while self._waiting and self._waiting[0].offset < self._num_given:
            due.append(self._waiting.popleft())
        return due

    def _read(self, delta: TextDelta) -> None:
        if delta.logprobs is None:
            return
        ids: list[int] = unpack_tokens(delta.tokens).tolist()
        shape = len(ids), -1 if delta.logprobs.top else 0
        top_ids = unpack_tokens(delta.logprobs.top_tokens).reshape(shape).tolist()
        top = _numbers(delta.logprobs.top).reshape(shape).tolist()
        chosen = _numbers(delta.logprobs.chosen).tolist()
        for token_id, logprob, others, values in zip(ids, chosen, top_ids, top, strict=True):
            likeliest = list(zip(others, values, strict=True))
            self._waiting.append(TokenLogprob(token_id, logprob, self._num_decoded, likeliest))
            self._num_decoded += len(self._decoder.push(token_id))


def _numbers(packed: bytes) -> Any:
    """Packed float32, as far down as `LEAST_LOGPROB`."""
    return np.maximum(np.frombuffer(packed, dtype="<f4"), LEAST_LOGPROB)


def chat_logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """A chat choice's `logprobs`."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        piece = tokenizer.token_bytes(token_id)
        return {
            "token": _written(token_id, piece, tokenizer),
            "logprob": logprob,
            "bytes": None if piece is None else list(piece),
        }

    content = [
        entry(token.token_id, token.logprob)
        | {"top_logprobs": [entry(*likely) for likely in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """A completion choice's `logprobs`; the chosen token is always among the likeliest."""

    def written(token_id: int) -> str:
        piece = tokenizer.token_bytes(token_id)
        return _written(token_id, piece, tokenizer, prefix="bytes:")

    # Where two tokens are written alike the likelier one counts, but the chosen one before all.
    tops = [
        {written(token_id): logprob for token_id, logprob in reversed(token.top)}
        | {written(token.token_id): token.logprob}
        for token in tokens
    ]
    return {
        "tokens": [written(token.token_id) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(sorted(top.items(), key=lambda item: -item[1])) for top in tops],
        "text_offset": [token.offset for token in tokens],
    }


def _written(token_id: int, piece: bytes | None, tokenizer: Tokenizer, *, prefix: str = "") -> str:
    """A token as text: what is no whole character is written as its bytes."""
    if piece is None:
        return tokenizer.token_name(token_id)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return prefix + "".join([f"\\x{byte:02x}" for byte in piece])
