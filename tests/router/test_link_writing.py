"""A link on which nothing can be sent ends: it would look well, and its requests wait for ever."""

import asyncio
import random
from time import monotonic
from types import SimpleNamespace
from typing import Any

from preble.v1 import worker_pb2 as pb
from preble_router.dial import Connection
from preble_router.worker_link import LinkOptions, WorkerLink


class OneWayCall:
    """Says Hello, and takes no message."""

    def __init__(self) -> None:
        self.said_hello = False
        self.cancelled = asyncio.Event()

    async def read(self) -> pb.WorkerMessage:
        if not self.said_hello:
            self.said_hello = True
            return pb.WorkerMessage(hello=pb.Hello(worker_id="w0"))
        await self.cancelled.wait()
        raise asyncio.CancelledError

    async def write(self, message: pb.RouterMessage) -> None:
        raise ValueError("a message that cannot be serialized")

    def cancel(self) -> None:
        self.cancelled.set()


class Listener:
    """Notes why links end."""

    def __init__(self) -> None:
        self.reasons = asyncio.Queue[str]()

    def link_up(self, link: WorkerLink, hello: pb.Hello) -> Any:
        return SimpleNamespace(ended=False, linked_at=monotonic(), sent_at=0.0)

    def link_down(self, session: Any, reason: str) -> None:
        self.reasons.put_nowait(reason)


async def test_a_stream_on_which_nothing_can_be_sent_is_ended() -> None:
    listener = Listener()

    async def close() -> None:
        pass

    def dial(address: str) -> Connection:
        return Connection(OneWayCall(), close)

    options = LinkOptions(router_id="r0", dial=dial, clock=monotonic)
    link = WorkerLink("w0:1", listener, options, rng=random.Random(0))  # type: ignore[arg-type]
    try:
        assert await asyncio.wait_for(listener.reasons.get(), 20.0)
    finally:
        await asyncio.wait([link.stop()])
