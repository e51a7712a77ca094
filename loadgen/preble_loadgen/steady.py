"""What each step takes at the machine's usual pace, out of rounds that ran at changing ones. Pure.

A shared machine is slower in some seconds than in others, by tens of percent, and all that runs in
them is. To compare steps, what they have in common is divided out first.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

QUANTILE = 0.25
"""Of a step's rounds. What disturbs one step alone can only slow it down."""


def steady_seconds(seconds: Floats) -> Floats:
    """One duration per step.

    Args:
        seconds: (rounds, steps).

    Returns:
        (steps,), as of a round of median pace.
    """
    paced: Floats = np.quantile(seconds / round_paces(seconds)[:, None], QUANTILE, axis=0)
    return paced


def round_paces(seconds: Floats) -> Floats:
    """(rounds,): how much slower than usual each round was, in most of its steps; 1 is usual."""
    typical = np.median(seconds, axis=0)
    paces = np.median(seconds / typical, axis=1)
    scaled: Floats = paces / np.median(paces)
    return scaled
