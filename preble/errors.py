"""Every error Preble raises across a module boundary, and its HTTP and gRPC statuses.

Blame is part of the class: `RequestError` is the caller's, `CapacityError` is the cluster's
momentary state, `PeerError` is the other process's, `ConfigError` is the operator's, and anything
else that escapes is a bug in Preble.
"""


class PrebleError(Exception):
    """Root of all errors of this project. `code` is stable and machine readable."""

    code = "internal_error"


class ConfigError(PrebleError):
    """An option, environment variable or file the operator gave cannot be used."""

    code = "invalid_config"


class RequestError(PrebleError):
    """The caller must change the request; repeating it cannot help."""

    code = "invalid_request"


class InvalidRequest(RequestError):
    """A field has a value outside of what is allowed.

    Attributes:
        field: the field's name as the caller wrote it, or None for the request as a whole.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Unauthenticated(RequestError):
    """The request carries no API key, or a wrong one."""

    code = "invalid_api_key"


class ModelNotFound(RequestError):
    """The cluster does not serve the named model."""

    code = "model_not_found"


class WorkerNotFound(RequestError):
    """No worker of that name is known, or it is not linked."""

    code = "worker_not_found"


class PromptTooLong(RequestError):
    """Prompt and requested output together exceed the model's context.

    Attributes:
        num_tokens: tokens the request needs.
        max_tokens: tokens the model or the worker's cache allows.
    """

    code = "context_length_exceeded"

    def __init__(self, message: str, *, num_tokens: int, max_tokens: int) -> None:
        super().__init__(message)
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


class PoisonedRequest(RequestError):
    """Workers failed each time such a request ran on them; it is not tried again for a while."""

    code = "poisoned_request"


class RequestCancelled(RequestError):
    """The client went away or cancelled; nobody reads the answer."""

    code = "cancelled"


class SlowReader(RequestError):
    """The client did not read its stream for so long that the request was given up."""

    code = "slow_reader"


class DeadlineExceeded(RequestError):
    """The request's deadline passed before it was complete."""

    code = "deadline_exceeded"


class CapacityError(PrebleError):
    """The cluster cannot serve the request now; the same request may succeed later.

    Attributes:
        retry_after_seconds: when a retry is worth trying.
    """

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Overloaded(CapacityError):
    """More work is queued than the operator's limit allows."""

    code = "overloaded"


class NoWorkers(CapacityError):
    """No worker is ready to take the request."""

    code = "no_workers"


class WorkerFailed(CapacityError):
    """The worker died or broke off and no further attempt is allowed."""

    code = "worker_failed"


class PeerError(PrebleError):
    """The other end of a connection broke the protocol."""

    code = "protocol_error"


HTTP_STATUS: dict[type[PrebleError], int] = {
    PrebleError: 500,
    ConfigError: 500,
    RequestError: 400,
    Unauthenticated: 401,
    ModelNotFound: 404,
    WorkerNotFound: 404,
    PromptTooLong: 413,
    RequestCancelled: 499,
    SlowReader: 408,
    DeadlineExceeded: 504,
    CapacityError: 503,
    Overloaded: 429,
    PeerError: 502,
}

GRPC_STATUS: dict[type[PrebleError], str] = {
    PrebleError: "INTERNAL",
    ConfigError: "INTERNAL",
    RequestError: "INVALID_ARGUMENT",
    Unauthenticated: "UNAUTHENTICATED",
    ModelNotFound: "NOT_FOUND",
    WorkerNotFound: "NOT_FOUND",
    RequestCancelled: "CANCELLED",
    SlowReader: "ABORTED",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    CapacityError: "UNAVAILABLE",
    Overloaded: "RESOURCE_EXHAUSTED",
    PeerError: "INTERNAL",
}


def http_status(error: Exception) -> int:
    """The HTTP status of `error`: that of its nearest listed class, 500 for foreign errors."""
    return next((HTTP_STATUS[c] for c in type(error).__mro__ if c in HTTP_STATUS), 500)


def grpc_status(error: Exception) -> str:
    """The name of the gRPC status code of `error`, `INTERNAL` for foreign errors."""
    return next((GRPC_STATUS[c] for c in type(error).__mro__ if c in GRPC_STATUS), "INTERNAL")
