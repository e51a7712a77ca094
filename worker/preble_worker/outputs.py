"""What one step of the scheduler hands to the worker's shell.

Almost everything a step produces is one token for each decoding request, so that part stays in
columns; a shell that only counts or forwards never pays for an object per token. `outputs` is the
other door to the same facts, as one `RequestOutput` per request, built when it is asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preble.events import CacheEvents
from preble.page_keys import TOKEN_BYTES
from preble.types import Logprobs, RequestOutput


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """One new token for each of several requests that all go on, row by row.

    Attributes:
        request_ids, attempts: whose token it is.
        positions: int64, index of the token in its request's output.
        tokens: uint32.
        cached_tokens: prompt tokens of the request that came from cache.
        logprobs: of the tokens of those rows that ask for them.

    The lists are shared between steps and must not be changed.
    """

    request_ids: list[str]
    attempts: list[int]
    positions: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.uint32]
    cached_tokens: list[int]
    logprobs: Mapping[int, Logprobs] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.request_ids)

    def __iter__(self) -> Iterator[RequestOutput]:
        packed = self.tokens.tobytes()
        rows = zip(
            self.request_ids,
            self.attempts,
            self.positions.tolist(),
            range(0, len(packed), TOKEN_BYTES),
            self.cached_tokens,
            strict=True,
        )
        for row, (request_id, attempt, position, at, cached_tokens) in enumerate(rows):
            yield RequestOutput(
                request_id=request_id,
                attempt=attempt,
                position=position,
                tokens=packed[at : at + TOKEN_BYTES],
                cached_tokens=cached_tokens,
                logprobs=self.logprobs.get(row),
            )

    def without(self, rows: list[int]) -> "TokenColumns":
        """All but `rows`."""
        keep = np.ones(len(self), dtype=np.bool_)
        keep[rows] = False
        kept = np.flatnonzero(keep).tolist()
        return TokenColumns(
            [self.request_ids[row] for row in kept],
            [self.attempts[row] for row in kept],
            self.positions[keep],
            self.tokens[keep],
            [self.cached_tokens[row] for row in kept],
            {new: self.logprobs[row] for new, row in enumerate(kept) if row in self.logprobs},
        )


NO_TOKENS = TokenColumns([], [], np.zeros(0, np.int64), np.zeros(0, np.uint32), [])


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What happened since the previous `StepOutputs`.

    Attributes:
        others: first tokens of a request, and every end with its last token.
        cache: None when the cache did not change.
        decoded: the tokens of the requests that were decoding and go on.

    No request is in both `others` and `decoded`. A request may be in `others` twice only where
    a later attempt replaced an earlier one.
    """

    others: list[RequestOutput]
    cache: CacheEvents | None
    decoded: TokenColumns = field(default=NO_TOKENS)

    @property
    def outputs(self) -> list[RequestOutput]:
        """Everything, one object per request; built anew by each call."""
        return [*self.others, *self.decoded]
