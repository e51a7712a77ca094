"""Just enough HTTP/1.1 to keep many streamed answers going at a few microseconds per event.

General clients cost 50 to 200 µs per event, which on the machine that also runs the cluster would
be measured as the cluster's latency.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from preble.errors import ConfigError


class ConnectionBroken(Exception):
    """The connection ended, or spoke something else than HTTP, before the answer was complete.

    Attributes:
        untouched: no byte of the answer had arrived.
    """

    def __init__(self, message: str, *, untouched: bool) -> None:
        super().__init__(message)
        self.untouched = untouched


class Response:
    """Receives one answer. `on_data(data, now)` is told of each part of a body with status 200.

    Attributes:
        status: 0 until the head has arrived.
        headers: by lower-case name.
        body: of an answer with another status, or when there is no `on_data`.
    """

    def __init__(self, on_data: Callable[[bytes, float], None] | None = None) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self._on_data = on_data

    def add(self, data: bytes, now: float) -> None:
        """More of the body."""
        if self._on_data is not None and self.status == 200:
            self._on_data(data, now)
        else:
            self.body += data


class _Connection(asyncio.Protocol):
    """One request at a time. The methods `on_*` are httptools' callbacks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._response: Response | None = None
        self._done: asyncio.Future[bool] | None = None
        self._now = 0.0
        self._touched = False
        self.is_open = True

    async def exchange(self, request: bytes, response: Response) -> bool:
        """Sends, and fills `response`. Returns whether the connection can be used again.

        Raises:
            ConnectionBroken: the answer did not come to its end.
        """
        assert self._transport is not None and self._done is None
        self._parser = httptools.HttpResponseParser(self)
        self._response, self._touched = response, False
        self._done = self._loop.create_future()
        self._transport.write(request)
        try:
            return await self._done
        finally:
            self._done = None

    def close(self) -> None:
        """At once: whoever is answering learns that nobody listens."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by name

    def data_received(self, data: bytes) -> None:
        if self._done is None:  # nobody asked
            self.close()
            return
        # The loop's own clock has milliseconds only, in uvloop.
        self._now, self._touched = time.perf_counter(), True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._break(str(error) if error else "closed by the server")

    def _break(self, message: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionBroken(message, untouched=not self._touched))

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._response is not None
        self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._response is not None
        self._response.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        assert self._response is not None
        self._response.add(data, self._now)

    def on_message_complete(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(self._parser.should_keep_alive())


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of HTTP servers, from a URL."""

    host: str
    port: int
    path: str
    secure: bool

    @classmethod
    def of(cls, url: str) -> "Endpoint":
        """Takes http:// and https:// URLs; the path is a prefix for all requests.

        Raises:
            ConfigError: it is no such URL.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in {"http", "https"} or not parts.hostname or port == -1:
            raise ConfigError(f"--url must be http://host:port or grpc://host:port, not {url!r}")
        secure = parts.scheme == "https"
        default = 443 if secure else 80
        return cls(parts.hostname, port or default, parts.path.rstrip("/"), secure)

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class HttpPool:
    """Connections to one endpoint, reused; as many as there are answers in progress."""

    def __init__(
        self, endpoint: Endpoint, *, token: str = "", context: ssl.SSLContext | None = None
    ) -> None:
        self._endpoint = endpoint
        self._context = (context or ssl.create_default_context()) if endpoint.secure else None
        self._idle: list[_Connection] = []
        authorization = f"authorization: Bearer {token}\r\n" if token else ""
        self._common = f"host: {endpoint.authority}\r\n{authorization}accept: */*\r\n"

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A whole request, ready to be written."""
        head = (
            f"{method} {self._endpoint.path}{path} HTTP/1.1\r\n{self._common}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1") + body

    async def exchange(self, request: bytes, response: Response) -> None:
        """Sends `request` and fills `response`. Cancelling it closes the connection.

        Raises:
            OSError: no connection can be made.
            ConnectionBroken: the answer did not come to its end.
        """
        connection = self._take()
        if connection is not None:
            try:
                await self._use(connection, request, response)
                return
            except ConnectionBroken as error:
                if not error.untouched:
                    raise
                # The server closed an idle connection as we began to use it: it saw no request.
        await self._use(await self._connect(), request, response)

    async def _use(self, connection: _Connection, request: bytes, response: Response) -> None:
        try:
            reusable = await connection.exchange(request, response)
        except BaseException:
            connection.close()
            raise
        if reusable and connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            _Connection, self._endpoint.host, self._endpoint.port, ssl=self._context
        )
        return connection

    def close(self) -> None:
        """Closes the idle connections; one in use closes when its exchange ends or is cancelled."""
        while self._idle:
            self._idle.pop().close()
