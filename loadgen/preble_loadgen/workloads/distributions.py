"""Distributions by the parameters in which workloads are published. Pure."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from preble_loadgen.workloads.options import Rng

Floats = npt.NDArray[np.float64]


def log_normal(rng: Rng, mean: float, sd: float) -> float:
    """A draw of the log-normal distribution with this mean and standard deviation."""
    variance = math.log1p((sd / mean) ** 2)
    return float(rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance)))


def log_normals(rng: Rng, mean: float, sd: float, size: int) -> Floats:
    """`size` draws of it."""
    return np.array([log_normal(rng, mean, sd) for _ in range(size)])


def clipped(value: float, low: float, high: float) -> float:
    """`value`, or the bound that it passes."""
    return min(max(value, low), high)


def from_quantiles(rng: Rng, shares: Sequence[float], values: Sequence[float]) -> float:
    """A draw of the distribution with these quantiles, interpolated in the logarithm."""
    return math.exp(float(np.interp(rng.random(), shares, np.log(values))))


def zipf_weights(size: int, exponent: float) -> Floats:
    """Weights of ranks 1 to `size`."""
    ranks = np.arange(1, size + 1, dtype=np.float64)
    return np.asarray(ranks**-exponent)
