"""How long an output will be, given how long it has become. Pure.

The router predicts the output of a request once. While it is generated the worker learns more: an
output of 300 tokens that goes on is not one of the many that end before. What finished outputs
were, in units of what was predicted of them, says how much longer such outputs become:

    n = p · E[r | r > g / p]        p predicted, g generated, r = length / prediction

With perfect predictions every r is 1 and n is p; with a constant for a prediction it is the
expected length of all outputs longer than g.
"""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BUCKETS_PER_OCTAVE = 8
"""A bucket is 9 % wide: less than any predictor errs."""
_OCTAVES = (-10, 10)
"""Ratios from a thousandth to a thousand, the first and last bucket open."""
MEMORY = 2000
"""Finished requests after which all that is known counts half: what clients ask changes."""


class LengthEstimate:
    """A histogram of finished lengths over their predictions, bounded, in which old ones fade.

    Attributes:
        mean: of the finished lengths in tokens, with the same memory; it stands for a prediction
            where there is none. 0 while nothing has finished.
    """

    __slots__ = ("_bounds", "_counts", "_edges", "_length_sum", "_means", "_num", "_sums", "mean")

    def __init__(self) -> None:
        low, high = _OCTAVES
        exponents = np.arange(low * BUCKETS_PER_OCTAVE, high * BUCKETS_PER_OCTAVE + 1)
        self._edges = np.exp2(exponents / BUCKETS_PER_OCTAVE)
        self._bounds: list[float] = self._edges.tolist()
        self._counts = np.zeros(len(self._bounds) + 1)
        self._sums = np.zeros(len(self._bounds) + 1)
        self._means: list[float] | None = None
        self._num = 0.0
        self._length_sum = 0.0
        self.mean = 0.0

    def learn(self, predicted: float | None, length: int) -> None:
        """A request of which `predicted` tokens were predicted has finished with `length`.

        One that was broken off says nothing of lengths: leave it out.
        """
        if length < 1:
            return
        ratio = length / self._prediction(predicted, otherwise=float(length))
        bucket = bisect_right(self._bounds, ratio)
        self._counts[bucket] += 1.0
        self._sums[bucket] += ratio
        self._num += 1.0
        self._length_sum += length
        self.mean = self._length_sum / self._num
        self._means = None
        if self._num >= MEMORY:
            self._fade()

    def expected(self, predicted: float | None, generated: int) -> float:
        """Expected whole length of a request that has `generated` tokens and goes on.

        More than `generated`. The request's own limit is not applied. Where no finished output was
        so far beyond its prediction, it is expected to become twice as long as it is.
        """
        prediction = self._prediction(predicted, otherwise=1.0)
        means = self._means or self._upper_means()
        mean = means[bisect_right(self._bounds, generated / prediction)]
        if mean == 0.0:
            beyond = generated if generated >= prediction else 0
            return max(prediction, 2.0 * beyond, generated + 1.0)
        length, least = prediction * mean, generated + 1.0
        return length if length > least else least

    def expected_of(self, predicted: Floats, generated: Floats) -> Floats:
        """`expected` of many at once, all with a prediction of at least one token: shape (n,)."""
        ratios = generated / predicted
        means = np.array(self._means or self._upper_means())
        mean = means[np.searchsorted(self._edges, ratios, side="right")]
        least = generated + 1.0
        beyond = np.where(ratios >= 1.0, generated, 0.0)
        unknown = np.maximum(predicted, 2.0 * beyond)
        return np.maximum(np.where(mean == 0.0, unknown, predicted * mean), least)

    def _prediction(self, predicted: float | None, *, otherwise: float) -> float:
        prediction = predicted or self.mean or otherwise
        return prediction if prediction > 1.0 else 1.0

    def _upper_means(self) -> list[float]:
        """Of each bucket: the mean ratio in it and those above it, 0 where there is none."""
        counts = np.cumsum(self._counts[::-1])[::-1]
        sums = np.cumsum(self._sums[::-1])[::-1]
        means: list[float] = np.divide(
            sums, counts, out=np.zeros_like(sums), where=counts > 1e-9
        ).tolist()
        self._means = means
        return means

    def _fade(self) -> None:
        self._counts *= 0.5
        self._sums *= 0.5
        self._num *= 0.5
        self._length_sum *= 0.5
