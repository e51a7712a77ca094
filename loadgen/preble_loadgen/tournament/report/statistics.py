"""Means and ratios over seeds, with 95 % confidence intervals. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.16,
    2.145,
    2.131,
    2.12,
    2.11,
    2.101,
    2.093,
    2.086,
    2.08,
    2.074,
    2.069,
    2.064,
    2.06,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)
"""0.975 quantile of Student's t for 1 to 30 degrees of freedom."""
Z_975 = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` seeds and its interval; with one seed the interval is that one value."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2.0


def t_quantile(degrees: int) -> float:
    """0.975 quantile of Student's t; above 30 degrees by the first terms of Cornish and Fisher."""
    assert degrees >= 1
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z = Z_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def estimate(sample: Iterable[float]) -> Estimate:
    """Arithmetic mean of at least one value."""
    values = list(sample)
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, mean, mean, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_quantile(n - 1) * math.sqrt(variance / n)
    return Estimate(mean, mean - half, mean + half, n)


def ratio_estimate(ratios: Iterable[float]) -> Estimate:
    """Geometric mean of ratios, all above 0: the interval is Student's on their logarithms."""
    logs = estimate(math.log(ratio) for ratio in ratios)
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.n)


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of at least one ratio, all above 0."""
    return math.exp(math.fsum(math.log(ratio) for ratio in ratios) / len(ratios))
