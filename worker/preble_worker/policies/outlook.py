"""How much longer a request takes, in tokens and in seconds, as well as a policy can know it."""

from collections.abc import Sequence

import numpy as np

from preble_worker.length_estimate import Floats, LengthEstimate
from preble_worker.policies.policy import Candidate, PolicyOptions


class Outlook:
    """Predictions that came with the requests, refined by how long outputs became.

    A request without a prediction counts as one of `max_tokens`. A step's fixed time is counted
    for each token, as if the request were alone: a policy compares, and all share the same steps.

    Attributes:
        lengths: of finished outputs, in units of what was predicted of them.
    """

    def __init__(self, options: PolicyOptions) -> None:
        cost = options.cost
        self.lengths = LengthEstimate()
        self._cost = cost
        self._token_seconds = cost.decode_seconds(0.0)
        self._context_seconds = cost.per_context_token
        self._swap_token_seconds = options.swap_token_seconds

    def learn(self, candidate: Candidate) -> None:
        """`candidate` has come to the end of its output."""
        self.lengths.learn(self.prediction(candidate), candidate.num_generated)

    def prediction(self, candidate: Candidate) -> int:
        """Tokens of its output as they were predicted first, at least one."""
        predicted, limit = candidate.predicted_output_tokens, candidate.max_tokens
        if predicted is None or predicted > limit:
            return limit
        return predicted if predicted > 1 else 1

    def remaining_tokens(self, candidate: Candidate) -> float:
        """Tokens still to be generated: E[length | length > generated] less those generated."""
        generated = candidate.num_generated
        whole, limit = (
            self.lengths.expected(self.prediction(candidate), generated),
            candidate.max_tokens,
        )
        return (whole if whole < limit else limit) - generated

    def remaining_seconds_of(
        self, candidates: Sequence[Candidate], predictions: Sequence[int]
    ) -> Floats:
        """`remaining_seconds` of many at once, of which so much was predicted: shape (n,)."""
        generated = np.array([c.num_generated for c in candidates], np.float64)
        limits = np.array([c.max_tokens for c in candidates], np.float64)
        num_tokens = np.array([c.num_tokens for c in candidates], np.float64)
        expected = self.lengths.expected_of(np.array(predictions, np.float64), generated)
        per_token = self._token_seconds + self._context_seconds * num_tokens
        seconds: Floats = (np.minimum(expected, limits) - generated) * per_token
        for index, candidate in enumerate(candidates):
            if candidate.num_missing:
                seconds[index] += self.prefill_seconds(candidate)
        return seconds

    def remaining_seconds(self, candidate: Candidate) -> float:
        """Prefill of what it misses, then its remaining tokens."""
        return self.seconds(candidate, self.remaining_tokens(candidate))

    def total_seconds(self, candidate: Candidate) -> float:
        """The whole of it as it was predicted first, nothing of its prompt being computed yet."""
        return self.seconds(candidate, float(self.prediction(candidate)))

    def prefill_seconds(self, candidate: Candidate) -> float:
        """Prefill of what it misses."""
        new = candidate.num_missing
        return self._cost.prefill_seconds(float(new), float(candidate.num_tokens - new))

    def return_seconds(self, num_tokens: int) -> float:
        """Worker time that it takes to preempt a request with `num_tokens` and have it back where
        it was: its prefill once more; none where it swaps, because copies run beside the steps.
        """
        computing = self._cost.prefill_seconds(float(num_tokens), 0.0)
        return 0.0 if num_tokens * self._swap_token_seconds < computing else computing

    def share_seconds(self, candidate: Candidate, at_once: int) -> float:
        """Worker time that a running one takes for a token, one of `at_once` that decode."""
        return self._cost.decode_seconds(float(candidate.num_tokens), float(at_once))

    def seconds(self, candidate: Candidate, num_output: float) -> float:
        """Prefill of what it misses, then `num_output` tokens."""
        decoding = num_output * self.token_seconds(candidate)
        return self.prefill_seconds(candidate) + decoding if candidate.num_missing else decoding

    def token_seconds(self, candidate: Candidate) -> float:
        """One more token."""
        return self._token_seconds + self._context_seconds * candidate.num_tokens
