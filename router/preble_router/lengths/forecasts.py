"""Every request's output length: predicted once, compared with what it came to, learnt from."""

from preble_router.lengths.accuracy import Accuracy, RunningAccuracy
from preble_router.lengths.predictor import LengthPredictor, Prompt


class LengthForecasts:
    """What the router's shell, and the simulator's, ask and tell of lengths.

    Args:
        predictor: None leaves predictions to the scheduler's own mean.
    """

    def __init__(self, predictor: LengthPredictor | None = None) -> None:
        self._predictor = predictor
        self._running = RunningAccuracy()

    def predict(self, prompt: Prompt) -> int | None:
        """Whole output in tokens, from 1 to the prompt's `max_tokens`; None to let the scheduler
        predict."""
        if self._predictor is None:
            return None
        expected = self._predictor.predict(prompt)
        if expected is None:
            return None
        return max(1, min(round(expected), prompt.max_tokens))

    def finished(self, prompt: Prompt, *, predicted: int, output_tokens: int) -> None:
        """A request ended of itself. One that was broken off is not told: its length means
        nothing."""
        if output_tokens < 1:
            return
        self._running.add(predicted, output_tokens)
        if self._predictor is not None:
            self._predictor.learn(prompt, output_tokens)

    def accuracy(self) -> Accuracy:
        """Of the last thousand that finished."""
        return self._running.accuracy()
