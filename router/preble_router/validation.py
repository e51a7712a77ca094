"""What values a request's fields may have; the HTTP gateway and the gRPC services share it.

The checks are pure. Each raises `InvalidRequest` with the field's name as the caller wrote it.
"""

from collections.abc import Sequence

from preble.errors import InvalidRequest
from preble.page_keys import TOKEN_BYTES, unpack_tokens
from preble.types import MAX_TOP_LOGPROBS, SamplingParams

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_NAME_CHARS = 256
"""Of a namespace or a request id."""
MAX_OUTPUT_TOKENS = 2**31 - 1
MAX_TEMPERATURE = 2.0
MAX_PENALTY = 2.0
MAX_SLO_SECONDS = 86_400.0


def check_range(value: float, low: float, high: float, *, field: str) -> None:
    """`low` <= `value` <= `high`; NaN is in no range."""
    if not low <= value <= high:
        raise InvalidRequest(f"{field} must be from {low} to {high}, not {value}", field=field)


def check_sampling(
    sampling: SamplingParams,
    *,
    max_tokens_field: str = "max_tokens",
    top_logprobs_field: str = "top_logprobs",
) -> None:
    """Every number of `sampling` is within what workers accept."""
    check_range(sampling.max_tokens, 1, MAX_OUTPUT_TOKENS, field=max_tokens_field)
    check_range(sampling.temperature, 0, MAX_TEMPERATURE, field="temperature")
    check_range(sampling.top_k, 0, 2**31 - 1, field="top_k")
    check_range(sampling.seed, 0, 2**64 - 1, field="seed")
    if not 0 < sampling.top_p <= 1:
        raise InvalidRequest(
            f"top_p must be above 0 and at most 1, not {sampling.top_p}", field="top_p"
        )
    check_range(sampling.presence_penalty, -MAX_PENALTY, MAX_PENALTY, field="presence_penalty")
    check_range(sampling.frequency_penalty, -MAX_PENALTY, MAX_PENALTY, field="frequency_penalty")
    check_range(sampling.top_logprobs or 0, 0, MAX_TOP_LOGPROBS, field=top_logprobs_field)
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(
            f"stop_token_ids may hold at most {MAX_STOP_TOKEN_IDS} ids, "
            f"not {len(sampling.stop_token_ids)}",
            field="stop_token_ids",
        )
    for token in sampling.stop_token_ids:
        check_range(token, 0, 2**32 - 1, field="stop_token_ids")


def check_slo(seconds: float | None, *, field: str) -> None:
    """An objective in seconds: above 0, at most a day; None is none."""
    if seconds is not None and not 0 < seconds <= MAX_SLO_SECONDS:
        raise InvalidRequest(
            f"{field} must be above 0 and at most {MAX_SLO_SECONDS:.0f} seconds, not {seconds}",
            field=field,
        )


def check_stop(stop: Sequence[str], *, field: str = "stop") -> None:
    """Stop strings are few, short and not empty."""
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"{field} may hold at most {MAX_STOP_STRINGS} strings, not {len(stop)}", field=field
        )
    for text in stop:
        if not text:
            raise InvalidRequest(f"{field} must not hold an empty string", field=field)
        if len(text) > MAX_STOP_STRING_CHARS:
            raise InvalidRequest(
                f"{field} strings may have at most {MAX_STOP_STRING_CHARS} characters, "
                f"not {len(text)}",
                field=field,
            )


def check_tokens(tokens: bytes, *, vocab_size: int, field: str = "prompt") -> None:
    """A prompt of packed token ids is not empty, whole, and within the vocabulary."""
    if not tokens:
        raise InvalidRequest(f"{field} must hold at least one token", field=field)
    if len(tokens) % TOKEN_BYTES:
        raise InvalidRequest(
            f"{field} must be packed uint32 token ids, {TOKEN_BYTES} bytes each, "
            f"not {len(tokens)} bytes",
            field=field,
        )
    largest = int(unpack_tokens(tokens).max())
    if largest >= vocab_size:
        raise InvalidRequest(
            f"{field} holds token id {largest}, but the model's vocabulary has {vocab_size} ids",
            field=field,
        )


def check_name(value: str, *, field: str) -> None:
    """A namespace or request id is short and printable; "" is allowed."""
    if len(value) > MAX_NAME_CHARS:
        raise InvalidRequest(
            f"{field} may have at most {MAX_NAME_CHARS} characters, not {len(value)}", field=field
        )
    if not value.isprintable():
        raise InvalidRequest(f"{field} must hold printable characters only", field=field)


def check_priority(value: int, *, field: str = "priority") -> None:
    """Priorities are 32-bit."""
    check_range(value, -(2**31), 2**31 - 1, field=field)
