"""`retrieval`: the mean length of the answers to the most similar prompts before (after ALISE).

Similar is what points the same way: the prompt's embedding by a model, where the router has one,
else its hashed n-grams. Each tenant has an index of its own, and all of them together remember
`max_requests` requests; the oldest leave.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from preble_router.lengths.ngrams import hashed_ngrams
from preble_router.lengths.predictor import Prompt, Vector

NEIGHBOURS = 8
MAX_REQUESTS = 20_000
"""About 15 MB with hashed n-grams."""


class NeighbourIndex(Protocol):
    """Vectors of unit length under integer keys."""

    def __len__(self) -> int: ...

    def add(self, key: int, vector: Vector) -> None:
        """`key` is new."""

    def remove(self, key: int) -> None:
        """`key` is known."""

    def nearest(self, vector: Vector, count: int) -> list[int]:
        """Keys of the most similar ones, at most `count`."""


MakeIndex = Callable[[int], NeighbourIndex]
"""Makes an empty index for vectors of so many dimensions."""


class Retrieval:
    """Answers from an index of nearest neighbours per tenant."""

    def __init__(self, make_index: MakeIndex, *, max_requests: int = MAX_REQUESTS) -> None:
        self._make_index = make_index
        self._max_requests = max_requests
        self._indexes: dict[str, NeighbourIndex] = {}
        self._lengths: dict[int, int] = {}
        self._remembered: deque[tuple[str, int]] = deque()
        self._next_key = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def predict(self, prompt: Prompt) -> float | None:
        """The mean of the nearest, or of all while there are fewer; None for a new tenant."""
        index = self._indexes.get(prompt.tenant)
        if index is None:
            return None
        keys = index.nearest(_vector(prompt), NEIGHBOURS)
        return sum(self._lengths[key] for key in keys) / len(keys) if keys else None

    def learn(self, prompt: Prompt, output_tokens: int) -> None:
        """One more; the oldest leaves where there are too many."""
        vector = _vector(prompt)
        index = self._indexes.get(prompt.tenant)
        if index is None:
            index = self._indexes[prompt.tenant] = self._make_index(len(vector))
        key, self._next_key = self._next_key, self._next_key + 1
        index.add(key, vector)
        self._lengths[key] = output_tokens
        self._remembered.append((prompt.tenant, key))
        if len(self._remembered) > self._max_requests:
            self._forget(*self._remembered.popleft())

    def _forget(self, tenant: str, key: int) -> None:
        del self._lengths[key]
        index = self._indexes[tenant]
        index.remove(key)
        if not len(index):
            del self._indexes[tenant]


def _vector(prompt: Prompt) -> Vector:
    return hashed_ngrams(prompt.tokens) if prompt.embedding is None else prompt.embedding
