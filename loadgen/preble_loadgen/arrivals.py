"""Arrival times made faster or slower. Pure."""

import random
from collections.abc import Sequence


def at_speed(times: Sequence[float], speed: float) -> list[float]:
    """`times` counted from the first, `speed` times as fast; infinite sends all at once."""
    assert speed > 0
    return [(at - times[0]) / speed for at in times]


def at_rate(times: Sequence[float], rate: float, *, rng: random.Random) -> list[float]:
    """`times` counted from the first, with all gaps rescaled to `rate` requests/s on average.

    A trace without a clock, all of it at one moment, gets Poisson arrivals.
    """
    assert rate > 0
    span = times[-1] - times[0] if times else 0.0
    if span > 0:
        return at_speed(times, rate * span / (len(times) - 1))
    arrivals, now = [], 0.0
    for _ in times:
        arrivals.append(now)
        now += rng.expovariate(rate)
    return arrivals
