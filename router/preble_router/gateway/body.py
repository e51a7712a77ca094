"""The body of a request as a JSON object, bounded before it is held."""

from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request

from preble.errors import InvalidRequest, RequestCancelled
from preble_router.gateway.fields import shown


async def read_object(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object that `request` carries.

    Raises:
        HTTPException: 415 if it is declared as something else, 413 if it exceeds `max_bytes`.
        InvalidRequest: it is no JSON, or no object.
        RequestCancelled: the client went away while it was sending.
    """
    _check_media_type(request.headers.get("content-type", ""))
    try:
        value = orjson.loads(await _read_bounded(request, max_bytes))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {shown(value)}")
    return value


def _check_media_type(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(
            415, f"Content-Type must be application/json, not {media_type or 'absent'}"
        )


async def _read_bounded(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestCancelled("the client went away while it was sending the request")
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than the {max_bytes} bytes that are allowed")
