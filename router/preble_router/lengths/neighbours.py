"""The index of nearest neighbours that `retrieval` asks: usearch's graph, imported when wanted."""

from typing import Any

from preble.errors import ConfigError
from preble_router.lengths.predictor import Vector
from preble_router.lengths.retrieval import MakeIndex, NeighbourIndex

_CONNECTIVITY = 12
_EXPANSION = 48
"""Of the graph; less is faster, and finds fewer of the nearest."""


class _GraphIndex:
    """Approximate, in the order of the logarithm of its size. Single-threaded: equal calls give
    equal answers."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def add(self, key: int, vector: Vector) -> None:
        self._index.add(key, vector, threads=1)

    def remove(self, key: int) -> None:
        self._index.remove(key, threads=1)

    def nearest(self, vector: Vector, count: int) -> list[int]:
        keys: list[int] = self._index.search(vector, count, threads=1).keys.tolist()
        return keys


def graph_indexes() -> MakeIndex:
    """Indexes of the library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ConfigError(
            "--length-predictor retrieval needs usearch: pip install 'preble[retrieval]'"
        ) from error

    def make(dimensions: int) -> NeighbourIndex:
        return _GraphIndex(
            Index(
                ndim=dimensions,
                metric="cos",
                dtype="f16",
                connectivity=_CONNECTIVITY,
                expansion_add=_EXPANSION,
                expansion_search=_EXPANSION,
            )
        )

    return make
