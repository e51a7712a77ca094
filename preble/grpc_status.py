"""Errors across a gRPC call: code, message and trailers out, an error of the same class back in.

A gRPC status code is coarser than our tree of errors, so a server adds `trailers(error)` to the
status, and a client that finds them restores class and attributes. Without them (another server,
a proxy, gRPC itself) the status code alone decides.
"""

import re
from collections.abc import Iterable, Mapping

from preble import errors
from preble.errors import PrebleError

CODE = "preble-code"
FIELD = "preble-field"
NUM_TOKENS = "preble-num-tokens"
MAX_TOKENS = "preble-max-tokens"
RETRY_AFTER = "retry-after"

_BY_CODE: dict[str, type[PrebleError]] = {
    error.code: error
    for error in (
        errors.ConfigError,
        errors.InvalidRequest,
        errors.Unauthenticated,
        errors.ModelNotFound,
        errors.WorkerNotFound,
        errors.PromptTooLong,
        errors.PoisonedRequest,
        errors.RequestCancelled,
        errors.SlowReader,
        errors.DeadlineExceeded,
        errors.CapacityError,
        errors.Overloaded,
        errors.NoWorkers,
        errors.WorkerFailed,
        errors.PeerError,
    )
}
_BY_STATUS: dict[str, type[PrebleError]] = {
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "FAILED_PRECONDITION": errors.InvalidRequest,
    "OUT_OF_RANGE": errors.InvalidRequest,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.Unauthenticated,
    "NOT_FOUND": errors.ModelNotFound,
    "CANCELLED": errors.RequestCancelled,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "RESOURCE_EXHAUSTED": errors.Overloaded,
    "UNAVAILABLE": errors.CapacityError,
    "UNIMPLEMENTED": errors.PeerError,
    "DATA_LOSS": errors.PeerError,
}


def trailers(error: Exception) -> tuple[tuple[str, str], ...]:
    """What a server sends beside the status of `error`; nothing for a foreign error."""
    if not isinstance(error, PrebleError):
        return ()
    pairs: list[tuple[str, str]] = [(CODE, error.code)]
    if isinstance(error, errors.InvalidRequest) and error.field:
        pairs.append((FIELD, error.field))
    if isinstance(error, errors.PromptTooLong):
        pairs += [(NUM_TOKENS, str(error.num_tokens)), (MAX_TOKENS, str(error.max_tokens))]
    if isinstance(error, errors.CapacityError):
        pairs.append((RETRY_AFTER, f"{error.retry_after_seconds:g}"))
    return tuple(pairs)


def from_status(
    status: str, message: str, trailers: Iterable[tuple[str, str | bytes]] = ()
) -> PrebleError:
    """The error behind a failed call.

    Args:
        status: name of the gRPC status code, "UNAVAILABLE" for example.
        message: the status's details.
        trailers: the call's trailing metadata; foreign keys are ignored.
    """
    found = {key: value for key, value in trailers if isinstance(value, str)}
    cls = _BY_CODE.get(found.get(CODE, "")) or _BY_STATUS.get(status, PrebleError)
    text = message or f"the call failed with {status}"
    if cls is errors.PromptTooLong:
        return errors.PromptTooLong(
            text,
            num_tokens=int(_number(found, NUM_TOKENS, 0)),
            max_tokens=int(_number(found, MAX_TOKENS, 0)),
        )
    if issubclass(cls, errors.CapacityError):
        return cls(text, retry_after_seconds=_number(found, RETRY_AFTER, 1.0))
    if issubclass(cls, errors.InvalidRequest):
        return cls(text, field=found.get(FIELD))
    return cls(text)


def _number(found: Mapping[str, str], key: str, default: float) -> float:
    """A trailer's value; the default where it is absent or not a plain decimal."""
    text = found.get(key, "")
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", text) else default
