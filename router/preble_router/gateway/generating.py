"""The generations of one HTTP request: consumed, timed, and cancelled when the client goes away."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from preble.errors import PrebleError, RequestCancelled, http_status
from preble.types import FinishReason, Usage
from preble_router.gateway.errors import error_json
from preble_router.gateway.record import RequestRecord
from preble_router.gateway.responses import Choice, ResponseEncoder, error_event, total_usage
from preble_router.metrics import Metrics
from preble_router.tenants import charged_tokens
from preble_router.text_generation import TextDelta, TextGeneration

_log = logging.getLogger(__name__)


class LiveRequest:
    """Consumed once, by `collect` or `events`; either lets go of everything, however it ends.

    Args:
        generations: one per choice, started, those of one prompt side by side.
        num_choices: for each prompt.
        receive: of the ASGI connection, whose body has been read: the next message says that the
            client went away.
    """

    def __init__(
        self,
        generations: Sequence[TextGeneration],
        *,
        num_choices: int,
        receive: Receive,
        record: RequestRecord,
        metrics: Metrics,
    ) -> None:
        self._generations = generations
        self._num_choices = num_choices
        self._receive = receive
        self._record = record
        self._metrics = metrics
        self._last_at: list[float | None] = [None] * len(generations)
        self._watch: asyncio.Task[None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Who serves each choice, and what was expected of that placement."""
        workers = [_header_text(generation.worker_id) for generation in self._generations]
        predicted = [str(generation.predicted_cached_tokens) for generation in self._generations]
        return {
            "x-preble-worker": ",".join(workers),
            "x-preble-predicted-cached-tokens": ",".join(predicted),
        }

    async def collect(self, encoder: ResponseEncoder) -> list[Choice]:
        """The whole outputs, as `encoder` needs them.

        Raises:
            PrebleError: one of them failed, or the client went away.
        """
        choices = [Choice() for _ in self._generations]
        logprobs = [encoder.new_logprobs() for _ in self._generations]
        with self:
            async with aclosing(self._deltas()) as deltas:
                async for index, delta in deltas:
                    waiting = logprobs[index]
                    choices[index].add(delta, waiting.due(delta) if waiting else ())
        return choices

    async def events(self, encoder: ResponseEncoder) -> AsyncGenerator[bytes, None]:
        """The outputs as server-sent events.

        What goes wrong before the first event is raised, so that it can have its HTTP status; what
        goes wrong after becomes the last event.
        """
        with self:
            started = False
            stream = _EventEncoding(encoder, len(self._generations))
            try:
                async with aclosing(self._deltas()) as deltas:
                    async for index, delta in deltas:
                        if event := stream.encode(index, delta):
                            started = True
                            yield event
            except Exception as error:
                if not started:
                    raise
                yield self._broken_off(error)

    def __enter__(self) -> Self:
        self._watch = asyncio.create_task(self._watch_client())
        self._metrics.live_requests.inc()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._watch is not None
        self._watch.cancel()
        self._cancel_all()
        self._metrics.live_requests.dec()
        usages = [generation.usage for generation in self._generations]
        self._record.usage = total_usage(usages, num_choices=self._num_choices)
        self._record.worker_ids = tuple(generation.worker_id for generation in self._generations)
        self._metrics.request_generated(self._record.usage)
        charged = sum(map(charged_tokens, usages))
        self._metrics.tenant_charged(self._generations[0].tenant, charged)

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel_all()

    def _cancel_all(self) -> None:
        for generation in self._generations:
            generation.cancel()

    async def _deltas(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """What comes, with the index of its choice."""
        if len(self._generations) == 1:
            async for delta in self._generations[0]:
                self._note(0, delta)
                yield 0, delta
            return
        async with aclosing(_interleaved(self._generations)) as deltas:
            async for index, delta in deltas:
                self._note(index, delta)
                yield index, delta

    def _note(self, index: int, delta: TextDelta) -> None:
        if delta.finish_reason is FinishReason.CANCELLED:
            raise RequestCancelled("the request was cancelled")
        if not delta.tokens:
            return
        now, last_at = time.perf_counter(), self._last_at[index]
        self._last_at[index] = now
        if last_at is not None:
            self._metrics.inter_token.observe(now - last_at)
            return
        self._metrics.ttft.observe(now - self._record.started_at)
        if self._record.first_token_at is None:
            self._record.first_token_at = now

    def _broken_off(self, error: Exception) -> bytes:
        if not isinstance(error, PrebleError):
            _log.exception("request %s failed", self._record.request_id)
        self._record.status = http_status(error)
        self._record.error = str(error) or repr(error)
        return error_event(error_json(error))


class EventStream(StreamingResponse):
    """Server-sent events, already encoded: the first, and then the rest.

    The client is watched by `LiveRequest.events`, so that there is no second task for it here.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes, None], headers: dict[str, str]
    ) -> None:
        super().__init__(rest, headers=_STREAM_HEADERS | headers)
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            await send(_part(self._first))
            async for event in self._rest:
                await send(_part(event))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


_STREAM_HEADERS = {
    "cache-control": "no-cache",
    # Proxies of the nginx family would otherwise collect events before they pass them on.
    "x-accel-buffering": "no",
}


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


class _EventEncoding:
    """Deltas of a stream to its events. Those of one delta leave together, the last with all that
    closes the stream."""

    def __init__(self, encoder: ResponseEncoder, num_choices: int) -> None:
        self._encoder = encoder
        self._num_choices = num_choices
        self._opened: set[int] = set()
        self._logprobs = [encoder.new_logprobs() for _ in range(num_choices)]
        self._usages: dict[int, Usage] = {}

    def encode(self, index: int, delta: TextDelta) -> bytes:
        """Empty while there is nothing to say."""
        waiting = self._logprobs[index]
        due = waiting.due(delta) if waiting else ()
        event = self._encoder.text(index, delta.text, due) if delta.text or due else b""
        if index not in self._opened:
            self._opened.add(index)
            event = self._encoder.opening(index) + event
        if delta.finish_reason is None:
            return event
        assert delta.usage is not None
        self._usages[index] = delta.usage
        event += self._encoder.finish(index, delta.finish_reason)
        if len(self._usages) == self._num_choices:
            usages = [usage for _, usage in sorted(self._usages.items())]
            event += self._encoder.closing(usages)
        return event


async def _interleaved(
    generations: Sequence[TextGeneration],
) -> AsyncGenerator[tuple[int, TextDelta], None]:
    """The deltas of several generations as they come."""
    waiting = {asyncio.ensure_future(g.__anext__()): i for i, g in enumerate(generations)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: waiting[future]):
                index, delta = waiting.pop(future), future.result()
                if delta.finish_reason is None:
                    waiting[asyncio.ensure_future(generations[index].__anext__())] = index
                yield index, delta
    finally:
        for future in waiting:
            future.cancel()


def _header_text(text: str) -> str:
    """`text` with everything replaced that an HTTP header cannot carry."""
    return "".join([c if c.isascii() and c.isprintable() else "?" for c in text])
