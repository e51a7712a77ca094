"""What both clients share below the messages: the address, the call's options, the streams."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict

import grpc
import grpc.aio

from preble import _messages, grpc_status
from preble._messages import Prompt
from preble.errors import ConfigError, PrebleError, RequestCancelled
from preble.results import CompletionChunk
from preble.transport import CHANNEL_OPTIONS, Tls, bearer, channel_credentials
from preble.v1 import inference_pb2

DEFAULT_ADDRESS = "127.0.0.1:8001"


class GenerateOptions(TypedDict, total=False):
    """Everything that may accompany a prompt; `Client.generate` explains each."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    namespace: str
    priority: int
    model: str
    request_id: str
    ttft_slo_seconds: float | None
    tbt_slo_seconds: float | None
    top_logprobs: int | None
    presence_penalty: float
    frequency_penalty: float
    timeout: float | None


class ConnectOptions(TypedDict, total=False):
    """How to reach a router; `Client` explains each."""

    token: str | None
    ca: str | Path | None
    certificate: str | Path | None
    key: str | Path | None
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a client connects to, and what it adds to every call."""

    address: str
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...]
    timeout: float | None

    def open(self) -> grpc.Channel:
        """A blocking channel. It connects on its first call."""
        if self.credentials is None:
            return grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(self.address, self.credentials, options=CHANNEL_OPTIONS)

    def open_async(self) -> grpc.aio.Channel:
        """The same for the running event loop."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.address, self.credentials, options=CHANNEL_OPTIONS)

    def call_options(self, timeout: float | None) -> dict[str, Any]:
        """Deadline and metadata of one call; None takes the client's timeout."""
        return {
            "timeout": self.timeout if timeout is None else timeout,
            "metadata": self.metadata,
        }

    def generate_call(
        self, prompt: Prompt, options: GenerateOptions
    ) -> tuple[inference_pb2.GenerateRequest, dict[str, Any]]:
        """The request for `prompt`, and its call options."""
        fields: dict[str, Any] = dict(options)
        timeout = fields.pop("timeout", None)
        return _messages.generate_request(prompt, **fields), self.call_options(timeout)


def connection(
    address: str | None = None,
    *,
    token: str | None = None,
    ca: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    timeout: float | None = None,
) -> Connection:
    """Check what the caller of a client gave; `Client` explains the arguments.

    Raises:
        ConfigError: an argument cannot be used, or a file cannot be read.
    """
    chosen = address or os.environ.get("PREBLE_GRPC_ADDRESS") or DEFAULT_ADDRESS
    secret = os.environ.get("PREBLE_API_KEY", "") if token is None else token
    plain = chosen.removeprefix("grpcs://").removeprefix("grpc://").rstrip("/")
    if "/" in plain or not plain.rpartition(":")[2].isdecimal():
        raise ConfigError(f"address must be host:port or grpc://host:port, not {chosen!r}")
    credentials = _credentials(ca, certificate, key, secure=chosen.startswith("grpcs://"))
    return Connection(plain, credentials, bearer(secret), timeout)


def _credentials(
    ca: str | Path | None, certificate: str | Path | None, key: str | Path | None, *, secure: bool
) -> grpc.ChannelCredentials | None:
    """None for plain text. `grpcs://` without `ca` trusts what the system trusts."""
    if (certificate is None) != (key is None):
        raise ConfigError("certificate and key must be given together")
    if certificate is not None and ca is None:
        raise ConfigError("certificate needs ca too")
    if ca is None:
        return grpc.ssl_channel_credentials() if secure else None
    client = Tls(certificate=Path(certificate), key=Path(key)) if certificate and key else None
    return channel_credentials(Path(ca), client)


def restored(error: grpc.RpcError) -> PrebleError:
    """The error of `preble.errors` behind a failed call."""
    trailers = tuple(error.trailing_metadata() or ())
    return grpc_status.from_status(error.code().name, error.details() or "", trailers)


class CompletionStream(Iterator[CompletionChunk]):
    """The chunks of one answer. Leaving it before its end cancels the request at the router."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __next__(self) -> CompletionChunk:
        try:
            return _messages.chunk(next(self._call))
        except grpc.RpcError as error:
            raise restored(error) from None
        except KeyboardInterrupt:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the request unless it is complete. Idempotent, from any thread."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncCompletionStream(AsyncIterator[CompletionChunk]):
    """The chunks of one answer. Leaving it before its end cancels the request at the router."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def __anext__(self) -> CompletionChunk:
        if self._closed:
            raise RequestCancelled("the stream was closed")
        try:
            message = await self._call.read()
        except grpc.RpcError as error:
            raise restored(error) from None
        except asyncio.CancelledError:
            if self._closed:  # by close() in another task; this one was not cancelled
                raise RequestCancelled("the stream was closed") from None
            self._call.cancel()
            raise
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return _messages.chunk(message)

    def close(self) -> None:
        """Cancel the request unless it is complete. Idempotent, from the event loop's thread."""
        if not self._call.done():
            self._closed = True
            self._call.cancel()

    async def aclose(self) -> None:
        """`close`, for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The collector may run in any thread, or after the loop has ended.
        if not self._call.done():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._call.cancel)
