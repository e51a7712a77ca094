"""gRPC `Worker`: between the streams of the routers and the engine loop.

    router ──Submit, Cancel──▶ reader ──commands──▶ engine loop
    router ◀──── write_to ◀── RouterLink ◀── deliver ◀──┘

Everything here runs on the event loop. Requests are known to the engine loop under keys of the
`RequestBook`; links are known to it as numbers only.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import grpc
import grpc.aio

from preble.events import EVERYTHING, CacheSnapshot, SnapshotRequest
from preble.types import FinishReason, RequestOutput
from preble.v1 import worker_pb2 as pb
from preble.v1 import worker_pb2_grpc
from preble.wire import snapshot_request_from_wire, snapshot_to_wire, submit_from_wire
from preble_worker.admission import refusal
from preble_worker.loop_messages import (
    Cancel,
    Command,
    LoopReport,
    Settle,
    SnapshotTaken,
    Submit,
    TakeSnapshot,
)
from preble_worker.request_book import RequestBook
from preble_worker.router_link import RouterLink
from preble_worker.step_messages import StepMessages

log = logging.getLogger(__name__)

ATTACH_SECONDS = 10.0
"""A caller that has not introduced itself by then is turned away."""


class Post(Protocol):
    """`EngineLoop.post`."""

    def __call__(self, *commands: Command) -> None: ...


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Serves the links.

    Args:
        hello: what every router is told first.
        post: hands commands to the engine loop.
        drain: called with the deadline in seconds, None for the worker's own, when a router asks
            for it.
        clock: seconds; deadlines of submitted requests are on it.
    """

    def __init__(
        self,
        hello: pb.Hello,
        *,
        post: Post,
        drain: Callable[[float | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hello = hello
        self._post = post
        self._drain = drain
        self._clock = clock
        self._book = RequestBook()
        self._messages = StepMessages(self._book)
        self._links: dict[int, RouterLink] = {}
        self._numbers = itertools.count(1)

    def is_linked(self, router_id: str) -> bool:
        """Whether a router of that id is linked; "" stands for any router."""
        links = self._links.values()
        return any(link.router_id == router_id or not router_id for link in links)

    @property
    def lags(self) -> bool:
        """Some router reads more slowly than the step loop reports."""
        return any(link.lags for link in self._links.values())

    def deliver(self, delivery: LoopReport | SnapshotTaken) -> None:
        """Queue a delivery of the engine loop on the links it is for."""
        if isinstance(delivery, SnapshotTaken):
            link = self._links.get(delivery.link)
            if link is not None:
                link.put_parts(_snapshot_messages(link, delivery.snapshot))
                link.is_live = True
            return
        live = [link.number for link in self._links.values() if link.is_live]
        for number, message in self._messages.of(delivery, live):
            self._links[number].put(message)

    def end_links(self) -> None:
        """Let every link end once everything queued is written."""
        for link in self._links.values():
            link.end()

    # The generated base class allows generators only; gRPC allows coroutines that write, too.
    async def Link(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[pb.RouterMessage], context: Any
    ) -> None:
        """Serve one router until either side ends the stream."""
        link = await self._open(request_iterator, context)
        reader = asyncio.create_task(self._read(link, request_iterator), name=f"read {link}")
        try:
            await link.write_to(context.write)
        except asyncio.CancelledError:
            if not link.cut_reason:
                raise
        finally:
            reader.cancel()
            self._close(link)
        if link.cut_reason:
            # The status waits behind what gRPC holds of the stream, until the router reads it or
            # is gone.
            with suppress(grpc.aio.InternalError):
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, link.cut_reason)

    async def _open(self, messages: AsyncIterator[pb.RouterMessage], context: Any) -> RouterLink:
        first = None
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                first = await anext(aiter(messages), None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no Attach came")
        if first is None or first.WhichOneof("message") != "attach":
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the first message of a link must be Attach"
            )
            raise AssertionError("abort raises")
        # With the first message it would go out twice were the link cut meanwhile; gRPC then sends
        # no status at all, and the caller waits for ever.
        await context.send_initial_metadata(())
        link = RouterLink(
            next(self._numbers),
            router_id=first.attach.router_id,
            peer=context.peer(),
            clock=self._clock,
        )
        self._links[link.number] = link
        link.put(pb.WorkerMessage(hello=self._hello))
        self._take_snapshot(link, EVERYTHING)
        log.info("%s linked, %d links", link, len(self._links))
        return link

    def _close(self, link: RouterLink) -> None:
        """Forget the link; nobody waits for its requests any more."""
        del self._links[link.number]
        link.end()
        keys = self._book.release(link.number)
        self._post(*(Cancel(key) for key in keys))
        log.info(
            "%s unlinked%s, %d of its requests cancelled, %d links",
            link,
            f" because {link.cut_reason}" if link.cut_reason else "",
            len(keys),
            len(self._links),
        )

    async def _read(self, link: RouterLink, messages: AsyncIterator[pb.RouterMessage]) -> None:
        try:
            async for message in messages:
                self._obey(link, message)
        except Exception:
            log.exception("%s sent what cannot be used", link)
            link.cut("it sent what cannot be used")
        finally:
            link.end()

    def _obey(self, link: RouterLink, message: pb.RouterMessage) -> None:
        match message.WhichOneof("message"):
            case "submit":
                self._submit(link, message.submit)
            case "cancel":
                cancel = message.cancel
                key = self._book.withdraw(link.number, cancel.request_id, cancel.attempt)
                if key is not None:
                    self._post(Cancel(key))
            case "snapshot_request":
                self._take_snapshot(link, snapshot_request_from_wire(message.snapshot_request))
            case "drain":
                log.info("%s asks to drain", link)
                drain = message.drain
                self._drain(drain.deadline_seconds if drain.HasField("deadline_seconds") else None)
            case other:
                log.warning("%s sent %s, ignored", link, other or "an unknown message")

    def _take_snapshot(self, link: RouterLink, request: SnapshotRequest) -> None:
        """One at a time: a router that asks again while its answer is under way gets that one."""
        if not link.awaits_snapshot:
            link.awaits_snapshot = True
            self._post(TakeSnapshot(link.number, request))

    def _submit(self, link: RouterLink, message: pb.Submit) -> None:
        request = submit_from_wire(message, now=self._clock())
        admission = self._book.admit(link.number, request)
        if admission is None:
            log.warning("%s sent attempt %d of %s again", link, request.attempt, request.request_id)
            return
        commands: list[Command] = []
        if admission.replaced is not None:
            commands.append(Cancel(admission.replaced))
        error = refusal(request, vocab_size=self._hello.vocab_size)
        if error:
            commands.append(Settle(_refused(admission.request.request_id, message, error)))
        else:
            commands.append(Submit(admission.request))
        self._post(*commands)


def _refused(key: str, message: pb.Submit, error: str) -> RequestOutput:
    return RequestOutput(
        request_id=key,
        attempt=message.attempt,
        position=message.num_delivered,
        finish_reason=FinishReason.REFUSED,
        error=error,
    )


def _snapshot_messages(link: RouterLink, snapshot: CacheSnapshot) -> Iterator[pb.WorkerMessage]:
    for part in snapshot_to_wire(snapshot):
        if not part.more:
            link.awaits_snapshot = False
        yield pb.WorkerMessage(snapshot=part)
