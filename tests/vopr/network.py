"""The wire in memory: what `grpc.aio` is to a link and to `WorkerService.Link`, with faults.

    WorkerLink ── write ──▶ down pipe ──▶ WorkerService.Link
               ◀── read ─── up pipe  ◀── context.write

Each pipe keeps the order and delays everything; while its direction is blocked, what arrives is
held, as TCP would repeat it until it gets through. A connection blocked for KEEPALIVE_SECONDS
breaks.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
from vopr.feeds import ShadowFeed
from vopr.inbox import Inbox

from preble.v1 import worker_pb2 as pb
from preble_router.dial import Connection

KEEPALIVE_SECONDS = 7.0
LATENCY_SECONDS = (0.0001, 0.003)
UP, DOWN = "up", "down"


class Mangle(Protocol):
    """What arrives instead of a message; None for one that it does not concern: it then waits."""

    __name__: str

    def __call__(self, message: pb.WorkerMessage, /) -> list[pb.WorkerMessage] | None: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is over; `code` OK for a proper end."""

    code: grpc.StatusCode
    details: str = ""


CONNECT = object()
CANCELLED = object()


class Aborted(Exception):
    """What `context.abort` raises."""


class Service(Protocol):
    """A worker process, as the network sees it."""

    is_alive: bool

    def accept(self, wire: "Wire") -> "asyncio.Task[None]":
        """Serve the stream."""


class Observer(Protocol):
    """Who is told of all that passes."""

    def sent(self, wire: "Wire", message: pb.RouterMessage) -> None: ...
    def heard(self, wire: "Wire", message: pb.WorkerMessage) -> None: ...
    def struck(self, kind: str) -> None: ...


class Network:
    """Who listens where, and who cannot reach whom.

    Attributes:
        listening: worker processes by address.
        mangles: what will happen to messages from an address, each once, in order.
    """

    def __init__(self, rng: random.Random, observer: Observer) -> None:
        self.listening: dict[str, Service] = {}
        self.mangles: dict[str, deque[Mangle]] = {}
        self.wires: list[Wire] = []
        self.observer = observer
        self.rng = rng
        self._blocked: Counter[tuple[str, str, str]] = Counter()

    def dial_as(self, router: str) -> Callable[[str], Connection]:
        """The `Dial` of a router."""

        def dial(address: str) -> Connection:
            wire = Wire(self, router, address)
            self.wires.append(wire)
            return Connection(wire, wire.close)

        return dial

    def is_blocked(self, router: str, address: str, direction: str) -> bool:
        return self._blocked[router, address, direction] > 0

    def block(self, router: str, address: str, *directions: str) -> None:
        for direction in directions:
            self._blocked[router, address, direction] += 1
        for wire in self.between(router, address):
            wire.blocked()

    def unblock(self, router: str, address: str, *directions: str) -> None:
        for direction in directions:
            self._blocked[router, address, direction] -= 1
        for wire in self.between(router, address):
            wire.unblocked()

    def between(self, router: str | None, address: str | None) -> list["Wire"]:
        """Open connections; None for any."""
        return [
            wire
            for wire in self.wires
            if router in (None, wire.router) and address in (None, wire.address)
        ]

    def sever(self, *, router: str | None = None, address: str | None = None) -> None:
        """Break connections, so that both sides see it at once."""
        for wire in self.between(router, address):
            wire.sever("connection reset")

    def apply_mangle(self, address: str, message: Any) -> list[Any]:
        """What becomes of a message from `address`."""
        waiting = self.mangles.get(address)
        if waiting and isinstance(message, pb.WorkerMessage):
            original = pb.WorkerMessage()
            original.CopyFrom(message)
            instead = waiting[0](original)
            if instead is not None:
                self.observer.struck(waiting.popleft().__name__)
                return list(instead)
        return [message]


class Pipe:
    """One direction of a connection."""

    def __init__(self, wire: "Wire", direction: str, take: Callable[[Any], None]) -> None:
        self._wire = wire
        self._direction = direction
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._latency = wire.network.rng.uniform(*LATENCY_SECONDS)
        self._last_at = 0.0
        self._held: list[Any] = []

    @property
    def is_blocked(self) -> bool:
        wire = self._wire
        return wire.network.is_blocked(wire.router, wire.address, self._direction)

    def put(self, item: Any) -> None:
        # What is sent later arrives later.
        self._last_at = max(self._loop.time() + self._latency, self._last_at + 1e-6)
        self._loop.call_at(self._last_at, self._arrive, item)

    def release(self) -> None:
        """What was held arrives."""
        held, self._held = self._held, []
        for item in held:
            self._arrive(item)

    def _arrive(self, item: Any) -> None:
        if self._wire.is_over:
            return
        if self.is_blocked:
            self._held.append(item)
        else:
            assert not self._held, "a later message would overtake those that are held"
            self._take(item)


class Wire:
    """One connection: a `LinkCall` to the router, iterator and context to the worker.

    Attributes:
        heard_at: when the router last read a message. announced_seconds: of the step to come.
        draining_since: when the router first read that the worker drains.
        disturbed_at: when it was last blocked, or time jumped.
        is_given_up: the router has cancelled it, which the worker may not know yet.
        was_broken: by the worker, the network or a wrong message; not by the router's own will.
        is_over: nothing arrives any more, on either side.
        feed: what the events that the router read say of the order they came in.
    """

    def __init__(self, network: Network, router: str, address: str) -> None:
        self.network = network
        self.router = router
        self.address = address
        self.feed = ShadowFeed()
        self.is_over = False
        self.is_given_up = False
        self.was_broken = False
        self.heard_at = self.disturbed_at = asyncio.get_running_loop().time()
        self.announced_seconds = 0.0
        self.draining_since = float("inf")
        self.worker_id = ""
        self.epoch = 0
        self._to_router = Inbox()
        self._to_worker = Inbox()
        self._up = Pipe(self, UP, self._arrive_up)
        self._down = Pipe(self, DOWN, self._arrive_down)
        self._handler: asyncio.Task[None] | None = None
        self._blocked_since: float | None = None
        self._is_dead = False
        self._down.put(CONNECT)
        self.blocked()

    def __str__(self) -> str:
        return f"{self.router}-{self.worker_id or self.address}"

    # The router's side.

    async def read(self) -> Any:
        """As `grpc.aio.StreamStreamCall.read`."""
        item = await self._to_router.get()
        if item is CANCELLED:
            raise asyncio.CancelledError
        if isinstance(item, Ended):
            self._to_router.put(item)
            if item.code is grpc.StatusCode.OK:
                return grpc.aio.EOF
            raise grpc.aio.AioRpcError(
                item.code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=item.details
            )
        self.network.observer.heard(self, item)
        return item

    async def write(self, message: pb.RouterMessage) -> None:
        """As `grpc.aio.StreamStreamCall.write`."""
        if self.is_over or self.is_given_up:
            raise asyncio.InvalidStateError("the call is over")
        self.network.observer.sent(self, message)
        self._down.put(message)

    def cancel(self) -> None:
        """The worker learns of it when it can be reached, or from its own keepalive."""
        if not (self.is_over or self.is_given_up):
            self.is_given_up = True
            self._to_router.replace_by(CANCELLED)
            self._down.put(CANCELLED)

    async def close(self) -> None:
        """The channel is closed."""
        self.cancel()

    def hears_of(self, epoch: int) -> bool:
        """Whether the router reads here what the process of that epoch says."""
        return self.epoch == epoch and not (self.is_over or self.is_given_up)

    @property
    def is_blocked(self) -> bool:
        """In either direction."""
        return self._blocked_since is not None

    # The worker's side.

    def __aiter__(self) -> "Wire":
        return self

    async def __anext__(self) -> pb.RouterMessage:
        message: pb.RouterMessage = await self._to_worker.get()
        return message

    @property
    def context(self) -> "WireContext":
        return WireContext(self)

    def send_up(self, message: Any) -> None:
        if not self.is_over:
            self._up.put(message)

    def handler_done(self, task: "asyncio.Task[None]") -> None:
        self.was_broken = True
        if task.cancelled():
            self.send_up(Ended(grpc.StatusCode.CANCELLED, "the worker cancelled the call"))
            return
        error = task.exception()
        if isinstance(error, Aborted):
            self.send_up(Ended(*error.args))
        elif error is not None:
            raise error
        else:
            self.send_up(Ended(grpc.StatusCode.OK))

    # What happens to it.

    def sever(self, reason: str) -> None:
        """Both sides see at once that it is broken."""
        self.was_broken = True
        if not self.is_over:
            self._to_router.replace_by(Ended(grpc.StatusCode.UNAVAILABLE, reason))
            self._end()

    def die(self) -> None:
        """The worker's process is gone; the router sees it when it hears anything at all."""
        if not self._up.is_blocked:
            self.sever("the process died")
            return
        self.was_broken = self._is_dead = True
        if self._handler is not None:
            self._handler.cancel()
        self._up.put(Ended(grpc.StatusCode.UNAVAILABLE, "the process died"))

    @property
    def is_muted(self) -> bool:
        """Nothing that the worker says arrives."""
        return self._up.is_blocked

    def blocked(self) -> None:
        """Perhaps; if so for too long, both ends give it up."""
        if self._blocked_since is None and (self._up.is_blocked or self._down.is_blocked):
            loop = asyncio.get_running_loop()
            self._blocked_since = self.disturbed_at = loop.time()
            loop.call_later(KEEPALIVE_SECONDS, self._keep_alive, self._blocked_since)

    def unblocked(self) -> None:
        if not (self._up.is_blocked or self._down.is_blocked):
            self._blocked_since = None
            self.disturbed_at = asyncio.get_running_loop().time()
        self._up.release()
        self._down.release()

    def _keep_alive(self, since: float) -> None:
        if self._blocked_since == since:
            self.sever("keepalive timed out")

    def _end(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.network.wires.remove(self)
        if self._handler is not None:
            self._handler.cancel()

    def _arrive_up(self, item: Any) -> None:
        instead = self.network.apply_mangle(self.address, item)
        self.was_broken |= instead != [item]
        for each in instead:
            self._to_router.put(each)
        if self._is_dead and isinstance(item, Ended):
            self._end()

    def _arrive_down(self, item: Any) -> None:
        if item is CANCELLED:
            self._end()
            return
        if item is not CONNECT:
            self._to_worker.put(item)
            return
        service = self.network.listening.get(self.address)
        if service is None or not service.is_alive:
            self.sever("connection refused")
            return
        self._handler = service.accept(self)
        self._handler.add_done_callback(self.handler_done)


class WireContext:
    """What `WorkerService.Link` uses of a `grpc.aio.ServicerContext`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def peer(self) -> str:
        return self._wire.router

    async def send_initial_metadata(self, metadata: tuple[()]) -> None:
        """They are no message."""

    async def write(self, message: pb.WorkerMessage) -> None:
        self._wire.send_up(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Aborted(code, details)
