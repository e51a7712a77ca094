"""The engine of sleeps: time by the cost model, tokens by a hash. It computes nothing."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from preble.cost import CostModel
from preble_worker.batch import Batch, predicted_seconds
from preble_worker.simulated_tokens import LOWEST_TOKEN, TokenSource, simulated_tokens

__all__ = ["LOWEST_TOKEN", "SimulatedEngine", "simulated_tokens"]


class SimulatedEngine:
    """Sleeps each batch's predicted duration and draws tokens from hashes.

    Args:
        excluded: token ids that are never drawn, such as the end of sequence.
        time_scale: multiplies every sleep; 0 never sleeps.
        sleep: called with seconds.
    """

    def __init__(
        self,
        cost: CostModel,
        vocab_size: int,
        *,
        excluded: Sequence[int] = (),
        time_scale: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cost = cost
        self._tokens = TokenSource(vocab_size, excluded=excluded)
        self._time_scale = time_scale
        self._sleep = sleep

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        """One token per row with `samples`, after the time a real device would have taken."""
        seconds = predicted_seconds(self._cost, batch) * self._time_scale
        if seconds > 0.0:
            self._sleep(seconds)
        tokens: npt.NDArray[np.int64] = self._tokens.draw(batch)[0]
        return tokens
