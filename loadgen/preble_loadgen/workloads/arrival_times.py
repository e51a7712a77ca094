"""When requests come: Poisson, in bursts, or with the gaps of a recorded trace. Pure."""

from collections.abc import Sequence

import numpy as np

from preble_loadgen.workloads.distributions import Floats
from preble_loadgen.workloads.options import Rng, WorkloadOptions


def arrival_times(
    size: int, rate: float, options: WorkloadOptions, rng: Rng, *, part: int = 0
) -> Floats:
    """`size` times in seconds, the first 0, `rate` per second on average.

    Args:
        part: of the workload, where parts replay different traces; the last one given serves all
            further parts.
    """
    if options.arrivals:
        recorded = options.arrivals[min(part, len(options.arrivals) - 1)]
        return replayed(size, rate, recorded)
    return gamma(size, rate, options.cv if "bursty" in options.variants else 1.0, rng)


def gamma(size: int, rate: float, cv: float, rng: Rng) -> Floats:
    """A renewal process with gamma gaps; a `cv` of 1 makes it Poisson."""
    shape = 1 / cv**2
    gaps = rng.gamma(shape, 1 / (rate * shape), size)
    gaps[:1] = 0.0
    return np.cumsum(gaps)


def replayed(size: int, rate: float, recorded: Sequence[float]) -> Floats:
    """The recorded gaps in their order, from the first again after the last, rescaled to `rate`.

    Recorded times that do not differ have no gaps to scale; then all arrive at once.
    """
    times = slowed(size, recorded, 1.0)
    return times * ((size - 1) / rate / times[-1]) if size and times[-1] > 0 else times


def slowed(size: int, recorded: Sequence[float], factor: float) -> Floats:
    """The recorded gaps in their order, from the first again after the last, `factor` as long."""
    gaps = np.diff(np.asarray(recorded, dtype=np.float64))
    if size < 2 or not gaps.any():
        return np.zeros(size)
    return np.concatenate([[0.0], np.cumsum(np.resize(gaps, size - 1))]) * factor
