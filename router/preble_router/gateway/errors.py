"""Errors as OpenAI's API writes them: `{"error": {"message", "type", "param", "code"}}`."""

import math

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from preble.errors import CapacityError, InvalidRequest, PrebleError, http_status
from preble_router.gateway.record import RECORD_KEY, RequestRecord

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def error_json(error: Exception) -> bytes:
    """The error object. A foreign error is a bug of ours, and tells nothing of its inside."""
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
        code: str | None = _CODES.get(status)
    elif isinstance(error, PrebleError):
        status, message, code = http_status(error), str(error), error.code
    else:
        status, message, code = 500, "internal error of the router", PrebleError.code
    default = "server_error" if status >= 500 else "invalid_request_error"
    field = error.field if isinstance(error, InvalidRequest) else None
    described = {
        "message": message,
        "type": _TYPES.get(status, default),
        "param": field,
        "code": code,
    }
    return orjson.dumps({"error": described})


def error_response(error: Exception) -> Response:
    """The whole answer to a request that failed before anything was sent."""
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    status = error.status_code if isinstance(error, HTTPException) else http_status(error)
    if isinstance(error, CapacityError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error_json(error), status, headers, media_type="application/json")


async def on_error(request: Request, error: Exception) -> Response:
    """As an exception handler of the application; the log line will say it too."""
    record: RequestRecord = request.scope[RECORD_KEY]
    record.error = error.detail if isinstance(error, HTTPException) else str(error)
    return error_response(error)
