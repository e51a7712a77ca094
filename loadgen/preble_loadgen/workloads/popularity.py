"""Which prefix each request has, by weights that may change while time goes on. Pure."""

import numpy as np
import numpy.typing as npt

from preble_loadgen.workloads.distributions import Floats, zipf_weights
from preble_loadgen.workloads.options import Rng, WorkloadOptions

Keys = npt.NDArray[np.int64]

DRIFT_SECONDS = 300.0
HOT_SECONDS = 30.0
HOT_SHARE = 0.5


def chosen_keys(
    weights: Floats, times: Floats, options: WorkloadOptions, rng: Rng, *, exact: bool
) -> Keys:
    """For each arrival, the index of its prefix.

    Args:
        weights: the data's own; the variants even and zipf put others in their place.
        exact: every prefix gets its share as exactly as whole numbers allow, in random order.
    """
    if "even" in options.variants:
        weights, exact = np.ones(len(weights)), True
    elif "zipf" in options.variants:
        weights, exact = zipf_weights(len(weights), options.zipf), False
    if "drift" in options.variants:
        keys = _drifting(weights, times, rng)
    elif exact:
        keys = _shuffled_shares(weights, len(times), rng)
    else:
        keys = rng.choice(len(weights), len(times), p=weights / weights.sum())
    return _with_hot_burst(keys, times, len(weights), rng) if _is_hot(options) else keys


def _is_hot(options: WorkloadOptions) -> bool:
    return "hot-burst" in options.variants


def _drifting(weights: Floats, times: Floats, rng: Rng) -> Keys:
    """In every period the same weights, dealt out to the prefixes anew."""
    keys = np.empty(len(times), dtype=np.int64)
    periods = (times // DRIFT_SECONDS).astype(np.int64)
    for period in np.unique(periods):
        members = np.flatnonzero(periods == period)
        dealt = rng.permutation(weights)
        keys[members] = rng.choice(len(dealt), len(members), p=dealt / dealt.sum())
    return keys


def _shuffled_shares(weights: Floats, size: int, rng: Rng) -> Keys:
    """Whole shares by the largest remainders."""
    shares = weights * (size / weights.sum())
    counts = np.floor(shares).astype(np.int64)
    order = np.argsort(counts - shares, kind="stable")
    counts[order[: size - counts.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(len(weights)), counts))


def _with_hot_burst(keys: Keys, times: Floats, num_keys: int, rng: Rng) -> Keys:
    middle = times[-1] / 2
    hot = rng.integers(num_keys)
    redirected = (np.abs(times - middle) <= HOT_SECONDS / 2) & (rng.random(len(times)) < HOT_SHARE)
    return np.where(redirected, hot, keys)
