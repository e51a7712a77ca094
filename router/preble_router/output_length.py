"""How long outputs will be: the router's guess, made once per request when it is placed.

It books decode load with it, and sends it along for the worker's own scheduling.
"""

from preble_router.stimuli import RouteRequest


class OutputLength:
    """A running mean over finished requests, in which the last few hundred weigh most.

    Attributes:
        mean: in tokens; 0 while nothing is known.
    """

    MEMORY = 500
    """Finished requests after which an old length weighs 1/e."""

    __slots__ = ("_num_seen", "mean")

    def __init__(self) -> None:
        self.mean = 0.0
        self._num_seen = 0

    def predict(self, request: RouteRequest) -> float:
        """Expected output tokens: what the request says, else the mean, else, when none has ended
        yet, as many as are allowed."""
        if request.predicted_output_tokens is not None:
            return float(request.predicted_output_tokens)
        if not self._num_seen:
            return float(request.max_tokens)
        return min(float(request.max_tokens), self.mean)

    def observe(self, output_tokens: int) -> None:
        """A request ended after `output_tokens`; nothing is learnt from one that made none."""
        if output_tokens <= 0:
            return
        self._num_seen = min(self._num_seen + 1, self.MEMORY)
        self.mean += (output_tokens - self.mean) / self._num_seen
