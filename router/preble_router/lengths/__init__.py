"""Predictors of output length, one file each.

`mean`, the default, is none of them: the scheduler keeps the mean of all requests itself.
"""

from collections.abc import Callable

from preble.errors import ConfigError
from preble_router.lengths.max_tokens import MaxTokens
from preble_router.lengths.neighbours import graph_indexes
from preble_router.lengths.predictor import LengthPredictor
from preble_router.lengths.prefix_mean import PrefixMean
from preble_router.lengths.retrieval import Retrieval

DEFAULT = "mean"
_MAKE: dict[str, Callable[[], LengthPredictor]] = {
    "max_tokens": MaxTokens,
    "prefix_mean": PrefixMean,
    "retrieval": lambda: Retrieval(graph_indexes()),
}
LENGTH_PREDICTOR_NAMES = (DEFAULT, *_MAKE)


def make_length_predictor(name: str) -> LengthPredictor | None:
    """The predictor of that name; None for the scheduler's own mean.

    Raises:
        ConfigError: there is none of that name, or what it needs is not installed.
    """
    if name == DEFAULT:
        return None
    if name not in _MAKE:
        raise ConfigError(
            f"length predictor {name!r} is unknown; there are {', '.join(LENGTH_PREDICTOR_NAMES)}"
        )
    return _MAKE[name]()
