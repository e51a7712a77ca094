"""The stream to one worker address: connects, introduces itself, listens, and tries again.

    pause -> connect -> Attach -> Hello -> CacheSnapshot, StepOutput ... -> end -> pause

What the messages mean is the listener's business.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import grpc.aio

from preble.errors import PeerError
from preble.events import CacheSnapshot
from preble.v1 import worker_pb2 as pb
from preble.wire import snapshot_from_wire
from preble_router.dial import Connection, Dial, LinkCall
from preble_router.session import Session

_log = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
"""From dialling to Hello; a frozen process accepts connections and never says it."""
FIRST_DELAY_SECONDS = 0.1
LAST_DELAY_SECONDS = 2.0
REJECTED_DELAY_SECONDS = 10.0
"""Before an address is tried again whose worker this router does not want."""
_SETTLED_SECONDS = 2.0
"""A link that lasted so long was good; the next failure starts from the first delay again."""


class LinkRejected(PeerError):
    """The worker is not one of this router's: another model, a replaced process, a removed one."""


class LinkListener(Protocol):
    """Whom a link tells. A `PeerError` raised by any of these ends the connection."""

    def link_up(self, link: "WorkerLink", hello: pb.Hello) -> Session:
        """The worker said Hello. Raises `LinkRejected` to try again much later."""

    def link_step(self, session: Session, step: pb.StepOutput) -> None:
        """A step, in the order of the stream."""

    def link_snapshot(self, session: Session, snapshot: CacheSnapshot) -> None:
        """A whole snapshot, its parts joined."""

    def link_down(self, session: Session, reason: str) -> None:
        """The connection that gave this session is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """As which router, through what and by which clock (seconds) all links work."""

    router_id: str
    dial: Dial
    clock: Callable[[], float]


class Backoff:
    """Delays between tries: doubling up to a bound, each shortened by up to half at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next = FIRST_DELAY_SECONDS

    def reset(self) -> None:
        """The last try succeeded."""
        self._next = FIRST_DELAY_SECONDS

    def delay(self) -> float:
        """Seconds to wait before the next try."""
        delay = self._next * self._rng.uniform(0.5, 1.0)
        self._next = min(2 * self._next, LAST_DELAY_SECONDS)
        return delay


class WorkerLink:
    """Keeps a stream to the worker at `address` for as long as it is not stopped."""

    def __init__(
        self, address: str, listener: LinkListener, options: LinkOptions, *, rng: random.Random
    ) -> None:
        self.address = address
        self._listener = listener
        self._options = options
        self._backoff = Backoff(rng)
        self._outbox: deque[pb.RouterMessage] = deque()
        self._outbox_filled = asyncio.Event()
        self._retry = asyncio.Event()
        self._call: LinkCall | None = None
        self._session: Session | None = None
        self._last_failure = ""
        self._task = asyncio.create_task(self._run(), name=f"link to {address}")

    def send(self, message: pb.RouterMessage) -> None:
        """Queues a message; it is lost if the connection ends first."""
        self._outbox.append(message)
        self._outbox_filled.set()

    def drop(self) -> None:
        """Ends the present connection; the address is tried again later."""
        if self._call is not None:
            self._call.cancel()

    def retry_now(self) -> None:
        """The worker is known to be there: skip the rest of the pause."""
        self._retry.set()

    def stop(self) -> asyncio.Task[None]:
        """Ends the link for good; await the task to see it gone."""
        self._task.cancel()
        return self._task

    async def _run(self) -> None:
        while True:
            try:
                self._report(await self._connect())
            except LinkRejected as error:
                self._report(str(error))
                await asyncio.sleep(REJECTED_DELAY_SECONDS)
            else:
                await self._pause(self._backoff.delay())

    async def _pause(self, seconds: float) -> None:
        self._retry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._retry.wait()

    def _report(self, reason: str) -> None:
        """Says once why an address cannot be used, not at every try."""
        if reason != self._last_failure:
            _log.warning("no link to the worker at %s: %s", self.address, reason)
            self._last_failure = reason

    async def _connect(self) -> str:
        """One connection from dialling to its end; the answer says why it ended."""
        self._outbox.clear()
        connection = self._options.dial(self.address)
        self._call = call = connection.call
        self.send(pb.RouterMessage(attach=pb.Attach(router_id=self._options.router_id)))
        writer = asyncio.create_task(self._write(call), name=f"writes to {self.address}")
        reason = "the worker closed the stream"
        try:
            await self._listen(call)
        except LinkRejected:
            raise
        except (PeerError, grpc.aio.AioRpcError, TimeoutError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                reason = "the router is done with it"
                raise
            reason = _describe(error)
        except Exception as error:
            _log.exception("a message of the worker at %s could not be used", self.address)
            reason = f"internal error: {error!r}"
        finally:
            self._call = None
            session, self._session = self._session, None
            if session is not None:
                if self._options.clock() - session.linked_at > _SETTLED_SECONDS:
                    self._backoff.reset()
                self._listener.link_down(session, reason)
            await _close(connection, writer)
        return reason

    async def _listen(self, call: LinkCall) -> None:
        async with asyncio.timeout(HELLO_SECONDS):
            first = await call.read()
        if first is grpc.aio.EOF:
            return
        if first.WhichOneof("message") != "hello":
            raise PeerError("the worker's first message is not Hello")
        self._session = session = self._listener.link_up(self, first.hello)
        self._last_failure = ""
        parts: list[pb.CacheSnapshot] = []
        while (message := await call.read()) is not grpc.aio.EOF:
            if session.ended:
                return
            kind = message.WhichOneof("message")
            if kind == "step":
                self._listener.link_step(session, message.step)
            elif kind == "snapshot":
                parts.append(message.snapshot)
                if not message.snapshot.more:
                    self._listener.link_snapshot(session, snapshot_from_wire(parts))
                    parts = []
            else:
                raise PeerError(f"unexpected message {kind!r} from the worker")

    async def _write(self, call: LinkCall) -> None:
        """Sends what is queued, in order; the reader learns why a stream broke."""
        try:
            while True:
                while self._outbox:
                    await call.write(self._outbox.popleft())
                if self._session is not None:
                    self._session.sent_at = self._options.clock()
                self._outbox_filled.clear()
                await self._outbox_filled.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        except Exception:
            _log.exception("a message to the worker at %s could not be sent", self.address)
            call.cancel()  # Else all that is sent later would wait for ever.


async def _close(connection: Connection, writer: asyncio.Task[None]) -> None:
    """Leaving a stream does not end it: cancel it, then wait until nothing of it is left."""
    connection.call.cancel()
    writer.cancel()
    try:
        await asyncio.wait([writer])
    finally:
        await connection.close()


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    if isinstance(error, TimeoutError):
        return f"no Hello within {HELLO_SECONDS:g} s"
    if isinstance(error, asyncio.CancelledError):
        return "the router dropped the connection"
    return str(error)
