"""The engine of sleeps: time by the cost model, tokens by a hash. It computes nothing."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from preble.cost import CostModel
from preble_worker.batch import Batch, predicted_seconds, seconds_with_copies
from preble_worker.config import NO_TIERS, TierConfig
from preble_worker.simulated_tokens import LOWEST_TOKEN, TokenSource, simulated_tokens

__all__ = ["LOWEST_TOKEN", "SimulatedEngine", "simulated_tokens"]


class SimulatedEngine:
    """Sleeps each batch's predicted duration and draws tokens from hashes, whatever temperature,
    cuts and penalties say.

    Args:
        tiers: of the cache, whose copies take their time.
        excluded: token ids that are never drawn, such as the end of sequence.
        time_scale: multiplies every sleep; 0 never sleeps.
        sleep: called with seconds.
    """

    def __init__(
        self,
        cost: CostModel,
        vocab_size: int,
        *,
        tiers: TierConfig = NO_TIERS,
        excluded: Sequence[int] = (),
        time_scale: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cost = cost
        self._tiers = tiers
        self._tokens = TokenSource(vocab_size, excluded=excluded)
        self._time_scale = time_scale
        self._sleep = sleep

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        """One token per row with `samples`, after the time a real device would have taken."""
        seconds = predicted_seconds(self._cost, batch)
        if batch.moves:
            seconds = seconds_with_copies(seconds, batch.moves, self._tiers)
        seconds *= self._time_scale
        if seconds > 0.0:
            self._sleep(seconds)
        if batch.logprobs is not None:
            self._tokens.fill_in(batch.logprobs)
        tokens: npt.NDArray[np.int64] = self._tokens.draw(batch)[0]
        return tokens
