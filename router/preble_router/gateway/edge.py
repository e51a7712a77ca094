"""What every HTTP request passes, whatever its route: id, API key, error shape, log line, count."""

import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from hmac import compare_digest
from math import isfinite

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preble.errors import InvalidRequest, PrebleError, Unauthenticated
from preble_router.gateway.errors import error_response
from preble_router.gateway.record import RECORD_KEY, RequestRecord
from preble_router.metrics import Metrics
from preble_router.validation import check_name

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Served without an API key, for probes and scrapers."""

GENERATING_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})

_POLLED_PATHS = OPEN_PATHS | {"/cluster"}

CANCELLED_STATUS = 499

_MODEL_PREFIX = "/v1/models/"
_access_log = logging.getLogger("preble.access")
_log = logging.getLogger(__name__)


class Edge:
    """The outermost ASGI application.

    Args:
        paths: those that are served; all others are counted together.
        api_keys: empty lets everybody in.
        all_hurry: every generating request has a limit of time, not only those that state one.
        check_turn: given that limit in seconds, or 0, raises `Overloaded` where there is no time to
            look at the request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        paths: Collection[str],
        api_keys: Sequence[str],
        metrics: Metrics,
        all_hurry: bool,
        check_turn: Callable[[float], None],
    ) -> None:
        self._app = app
        self._paths = frozenset(paths)
        self._api_keys = [key.encode() for key in api_keys]
        self._metrics = metrics
        self._all_hurry = all_hurry
        self._check_turn = check_turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given_id = headers.get(b"x-request-id", b"").decode("latin-1")
        record = self._new_record(scope, given_id)
        scope[RECORD_KEY] = record

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", record.request_id.encode()),
                ]
            await send(message)

        try:
            _check_request_id(given_id)
            self._check_key(scope["path"], headers.get(b"authorization", b""))
            timeout = headers.get(b"x-request-timeout")
            if scope["path"] in GENERATING_PATHS and (self._all_hurry or timeout is not None):
                self._check_turn(_seconds(timeout))
            await self._app(scope, receive, send_noting)
        except PrebleError as error:
            record.error = record.error or str(error)
            await error_response(error)(scope, receive, send_noting)
        except Exception as error:
            _log.exception("request %s failed", record.request_id)
            record.error = record.error or repr(error)
            if record.status:  # Too late to say so otherwise than by breaking off.
                raise
            await error_response(error)(scope, receive, send_noting)
        finally:
            self._finish(record)

    def _new_record(self, scope: Scope, given_id: str) -> RequestRecord:
        path = scope["path"]
        route = path if path in self._paths else "unmatched"
        if path.startswith(_MODEL_PREFIX):
            route = _MODEL_PREFIX + "{model}"
        usable = given_id if given_id.isascii() and given_id.isprintable() else ""
        return RequestRecord(
            request_id=usable or secrets.token_hex(12),
            method=scope["method"],
            path=path,
            route=route,
        )

    def _check_key(self, path: str, authorization: bytes) -> None:
        if not self._api_keys or path in OPEN_PATHS:
            return
        scheme, _, presented = authorization.partition(b" ")
        # Every key is compared, in constant time: how long it takes tells nothing.
        matches = [compare_digest(key, presented.strip()) for key in self._api_keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise Unauthenticated(
                "no valid API key: send one in the header 'Authorization: Bearer KEY'"
            )

    def _finish(self, record: RequestRecord) -> None:
        now = time.perf_counter()
        status = record.status or CANCELLED_STATUS
        self._metrics.http_request(record.method, record.route, status, now - record.started_at)
        # Probes and scrapers ask several times a second; that is no news.
        level = logging.DEBUG if record.route in _POLLED_PATHS else logging.INFO
        if _access_log.isEnabledFor(level):
            _access_log.log(level, record.line(now=now))


def _seconds(timeout: bytes | None) -> float:
    """0 where none is stated, or nothing sensible, which is refused when it is read."""
    try:
        seconds = float(timeout or 0)
    except ValueError:
        return 0.0
    return seconds if isfinite(seconds) else 0.0


def _check_request_id(given: str) -> None:
    if not given.isascii():
        raise InvalidRequest("X-Request-Id must be ASCII", field="X-Request-Id")
    check_name(given, field="X-Request-Id")
