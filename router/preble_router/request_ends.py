"""What a client is told when its request cannot be finished, or begun."""

from preble.errors import PoisonedRequest, PromptTooLong, WorkerFailed
from preble.page_keys import num_tokens
from preble_router.generation import Generation, GenerationRequest


def too_long(request: GenerationRequest, limit: int | None, message: str = "") -> PromptTooLong:
    """The request fits no worker; `limit` is what would."""
    needed = request.needed_tokens
    default = (
        f"the prompt has {num_tokens(request.tokens)} tokens and the output may have "
        f"{request.sampling.max_tokens}, together {needed}, but the limit is {limit} tokens"
    )
    return PromptTooLong(message or default, num_tokens=needed, max_tokens=limit or 0)


def poisoned() -> PoisonedRequest:
    """Workers failed with such a request on them."""
    return PoisonedRequest(
        "workers failed each time this request ran on them, so it is not tried again for a while"
    )


def worker_gone(generation: Generation) -> WorkerFailed:
    """No attempt is left, or nobody took the request over in time."""
    return WorkerFailed(
        f"worker {generation.worker_id} broke off attempt {generation.attempt} and no other "
        "worker could take over"
    )
