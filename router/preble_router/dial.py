"""How a link reaches its worker: over gRPC, or whatever stands in for it where time is virtual."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from preble.transport import aio_channel, bearer
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc


class LinkCall(Protocol):
    """What a link uses of a `grpc.aio.StreamStreamCall`; it ends and fails as that does."""

    async def read(self) -> Any:
        """The next `pb.WorkerMessage`; `grpc.aio.EOF` after the last."""

    async def write(self, message: pb.RouterMessage) -> None:
        """Returns when the next one may be written."""

    def cancel(self) -> Any:
        """Ends the stream from this side; whoever reads it is told by a `CancelledError`."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One stream and what is below it; after `close` nothing of either is left."""

    call: LinkCall
    close: Callable[[], Awaitable[None]]


Dial = Callable[[str], Connection]
"""Opens the stream to an address at once; whether anybody is there shows when it is read."""


def grpc_dial(*, token: str = "", ca: Path | None = None) -> Dial:
    """Each connection has its own channel: no state of a failed one survives.

    Args:
        token: bearer token to present to workers, "" for none.
        ca: PEM file for TLS; None for plain text.
    """

    def dial(address: str) -> Connection:
        channel = aio_channel(address, ca=ca)
        call = worker_pb2_grpc.WorkerStub(channel).Link(metadata=bearer(token))
        return Connection(call, channel.close)

    return dial
