"""How every gRPC channel and server of this project is set up: limits, keepalive, TLS, tokens.

gRPC itself sets TCP_NODELAY. Keepalive finds a peer whose host is gone; one whose process is
stuck is found by silence on the link, since the transport goes on answering for it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

import grpc
import grpc.aio

from preble.errors import ConfigError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message any end accepts."""

_LIMITS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
CHANNEL_OPTIONS = [
    *_LIMITS,
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # Without it a frozen peer is noticed after 60 s only.
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each channel has its own connection: a fresh one after a failure must not inherit its backoff.
    ("grpc.use_local_subchannel_pool", 1),
]
SERVER_OPTIONS = [
    *_LIMITS,
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two servers on one port would split the connections between them without an error.
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files of a server. `client_ca` demands client certificates signed by it (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Call metadata that presents `token`; empty for "" ."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def channel_credentials(ca: Path, client: Tls | None = None) -> grpc.ChannelCredentials:
    """TLS towards servers whose certificates `ca` signed, with our own certificate for mTLS."""
    return grpc.ssl_channel_credentials(
        root_certificates=_read(ca),
        private_key=_read(client.key) if client else None,
        certificate_chain=_read(client.certificate) if client else None,
    )


def aio_channel(
    address: str, *, ca: Path | None = None, client: Tls | None = None
) -> grpc.aio.Channel:
    """A channel to `address` (host:port); TLS when `ca` is given, plain text otherwise."""
    if ca is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(
        address, channel_credentials(ca, client), options=CHANNEL_OPTIONS
    )


def aio_server(tokens: tuple[str, ...] = ()) -> grpc.aio.Server:
    """A server with this project's options, which demands one of `tokens` if there are any."""
    return grpc.aio.server(
        interceptors=[RequireToken(tokens)] if tokens else [], options=SERVER_OPTIONS
    )


def listen(server: grpc.aio.Server, address: str, tls: Tls | None) -> int:
    """Bind `server` and return its port.

    Raises:
        ConfigError: the address is taken or malformed, or a TLS file cannot be read.
    """
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials(
                [(_read(tls.key), _read(tls.certificate))],
                root_certificates=_read(tls.client_ca) if tls.client_ca else None,
                require_client_auth=tls.client_ca is not None,
            )
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from error
    if not port:
        raise ConfigError(f"cannot listen on {address}: the address is in use or not ours")
    return int(port)


class RequireToken(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Refuses calls that present none of `tokens`; health checks stay open for orchestrators."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self._expected = [f"Bearer {token}".encode() for token in tokens]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Passes the call on, or answers it with UNAUTHENTICATED."""
        handler = await continuation(details)
        if handler is None or details.method.startswith("/grpc.health."):
            return handler
        presented = dict(details.invocation_metadata or ()).get("authorization", "")
        if any(compare_digest(str(presented).encode(), expected) for expected in self._expected):
            return handler
        return _refusal(handler)


def _refusal(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """A handler of the same shape that aborts: gRPC checks the shape before it calls."""

    async def refuse(_: object, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong bearer token")

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(
        refuse,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
