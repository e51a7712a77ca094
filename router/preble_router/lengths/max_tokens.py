"""`max_tokens`: every request makes use of its limit. For clients that state tight ones."""

from preble_router.lengths.predictor import Prompt


class MaxTokens:
    """Knows nothing, learns nothing."""

    def predict(self, prompt: Prompt) -> float | None:
        """The limit."""
        return float(prompt.max_tokens)

    def learn(self, prompt: Prompt, output_tokens: int) -> None:
        """Nothing to learn."""
