"""What a worker refuses at its door, so that nothing behind it need check again.

Routers validate what clients send; this guards the engine, where a token outside the vocabulary
would bring down every request of the batch.
"""

import math

from preble.page_keys import TOKEN_BYTES, num_tokens, unpack_tokens
from preble.types import MAX_TOP_LOGPROBS, SamplingParams, WorkerRequest


def refusal(request: WorkerRequest, *, vocab_size: int) -> str:
    """Why `request` cannot be run, as a sentence for the client; "" when it can.

    Whether it fits the cache and the context is the scheduler's to say.
    """
    if not request.tokens or len(request.tokens) % TOKEN_BYTES:
        return "the prompt must be one or more whole tokens"
    largest = int(unpack_tokens(request.tokens).max())
    if largest >= vocab_size:
        return f"token id {largest} is outside of the vocabulary of {vocab_size}"
    if request.num_delivered >= num_tokens(request.tokens):
        return f"{request.num_delivered} delivered tokens leave no prompt"
    return _sampling_refusal(request.sampling, vocab_size)


def _sampling_refusal(sampling: SamplingParams, vocab_size: int) -> str:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0.0):
        return f"temperature is {sampling.temperature}, must be finite and not negative"
    if not 0.0 < sampling.top_p <= 1.0:
        return f"top_p is {sampling.top_p}, must lie in (0, 1]"
    if not (math.isfinite(sampling.presence_penalty) and math.isfinite(sampling.frequency_penalty)):
        return "presence_penalty and frequency_penalty must be finite"
    most = min(MAX_TOP_LOGPROBS, vocab_size)
    if (sampling.top_logprobs or 0) > most:
        return f"top_logprobs is {sampling.top_logprobs}, must be at most {most}"
    return ""
