"""Predicted output lengths of simulated requests: as the router predicts them, or by an oracle."""

import math
import random

from preble_loadgen.simulator.flight import Flight
from preble_loadgen.simulator.options import ORACLE, SimulationOptions
from preble_loadgen.trace_request import TraceRequest
from preble_router.lengths import make_length_predictor
from preble_router.lengths.forecasts import LengthForecasts
from preble_router.lengths.predictor import Prompt


def oracle_length(request: TraceRequest, *, noise: float, seed: int) -> int:
    """The true output length, times a lognormal factor whose logarithm deviates by `noise`.

    A function of the request and the seed, whenever and however often it is asked.
    """
    error = random.Random(f"{seed} oracle {request.index}").gauss(0.0, noise)
    return max(1, round(request.output_tokens * math.exp(error)))


class SimulatedLengths:
    """Predicts a request's length once, and learns from those that finish."""

    def __init__(self, options: SimulationOptions) -> None:
        self._options = options
        self._is_oracle = options.length_predictor == ORACLE
        self._forecasts = LengthForecasts(
            None if self._is_oracle else make_length_predictor(options.length_predictor)
        )

    def predict(self, flight: Flight, page_keys: bytes) -> None:
        """Before its first attempt, whose key path is `page_keys`."""
        flight.prompt = Prompt(
            tokens=flight.tokens,
            page_keys=page_keys,
            tenant=flight.tenant,
            max_tokens=flight.stated_max_tokens,
        )
        if self._is_oracle:
            flight.predicted_output_tokens = oracle_length(
                flight.request, noise=self._options.length_noise, seed=self._options.seed
            )
        else:
            flight.predicted_output_tokens = self._forecasts.predict(flight.prompt)

    def finished(self, flight: Flight) -> None:
        """It has all its output."""
        if flight.prompt is not None and flight.predicted_output_tokens is not None:
            self._forecasts.finished(
                flight.prompt,
                predicted=flight.predicted_output_tokens,
                output_tokens=flight.num_output,
            )
