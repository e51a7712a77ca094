"""How good predicted lengths are: how far off, and whether they order requests rightly. Pure."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WINDOW_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of the predictions of requests that finished.

    Attributes:
        num_requests: how many that is.
        mean_absolute_error: tokens; None without requests.
        rank_correlation: Spearman's, from -1 to 1; a scheduler that serves the shortest first
            needs nothing else. None where all predictions, or all lengths, are the same.
    """

    num_requests: int = 0
    mean_absolute_error: float | None = None
    rank_correlation: float | None = None


def accuracy_of(predicted: Sequence[float], actual: Sequence[float]) -> Accuracy:
    """Of pairs of a prediction and what it came to, in tokens."""
    if not len(predicted):
        return Accuracy()
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    return Accuracy(len(x), float(np.abs(x - y).mean()), rank_correlation(x, y))


def rank_correlation(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where undefined."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else None


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (ends - (counts - 1) / 2.0)[places]
    return ranks


class RunningAccuracy:
    """Over the last `WINDOW_REQUESTS` requests that finished."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, int]] = deque(maxlen=WINDOW_REQUESTS)

    def add(self, predicted: int, actual: int) -> None:
        """A request finished."""
        self._pairs.append((predicted, actual))

    def accuracy(self) -> Accuracy:
        """Of those in the window."""
        return accuracy_of([p for p, _ in self._pairs], [a for _, a in self._pairs])
