"""One request from its acceptance to its one end, as its consumer and the dispatcher see it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from preble.errors import PeerError, PrebleError
from preble.page_keys import TOKEN_BYTES, num_tokens
from preble.types import FinishReason, Logprobs, SamplingParams
from preble_router.lengths.predictor import Prompt, Vector
from preble_router.session import Session
from preble_router.stimuli import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Tokens in. `deadline_at` is in `time.monotonic` seconds, None for none; `tenant`,
    `ttft_slo_seconds` and `tbt_slo_seconds` are as in `WorkerRequest`, `embedding` as in `Prompt`.
    """

    request_id: str
    tokens: bytes
    sampling: SamplingParams
    namespace: str = ""
    priority: int = 0
    deadline_at: float | None = None
    ttft_slo_seconds: float | None = None
    tbt_slo_seconds: float | None = None
    tenant: str = ""
    embedding: Vector | None = None

    @property
    def needed_tokens(self) -> int:
        """Prompt plus output, at most."""
        return num_tokens(self.tokens) + self.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens out: what came since the previous delta.

    Attributes:
        tokens: packed new tokens; a slow consumer gets those of several steps at once.
        finish_reason: set in the last delta.
        cached_tokens: prompt tokens the worker served from its cache, None before its first token.
        predicted_cached_tokens: what the router expected of the present worker.
        worker_id: the worker that serves the request now.
        logprobs: of `tokens`, where the request asks for them.
    """

    tokens: bytes
    finish_reason: FinishReason | None
    cached_tokens: int | None
    predicted_cached_tokens: int
    worker_id: str
    logprobs: Logprobs | None = None


class Generation:
    """An asynchronous iterator of `Delta`; the last one has a finish reason.

    Iteration raises `WorkerFailed`, `DeadlineExceeded` or `PromptTooLong` when the request ended
    so, after the tokens that came before. All methods belong to the event loop's thread, and one
    consumer iterates. What is buffered is bounded by the request's `max_tokens`.

    Attributes:
        attempt: of the present placement, from 1.
        output: packed output of all attempts, in the order in which it is handed out.
        num_output_tokens: in it; handed out or not.
        session: where it runs; None while no worker has it.
        placed_at: when the present attempt was submitted.
        prompt: as predictors of its length see it; None before its first placement.
        predicted_output_tokens: of the whole request, made with its first placement; None before.
        is_complete: it ended, or was cancelled, with all the output it was to have.
        failed: (worker id, session serial) of the attempts that broke off.
        num_failures: attempts that broke off because their worker failed, not because it drained.
        fingerprint: as in `poison`; None until it was needed.
        suspected_until: it ran on a worker that failed, and runs beside no other suspect until
            then or until it shows a token.
    """

    __slots__ = (
        "_cached_tokens",
        "_cancel",
        "_closed",
        "_end",
        "_logprobs",
        "_loop",
        "_taken",
        "_waiter",
        "attempt",
        "deadline_timer",
        "failed",
        "fingerprint",
        "is_complete",
        "num_before_attempt",
        "num_failures",
        "num_output_tokens",
        "output",
        "placed_at",
        "predicted_cached_tokens",
        "predicted_output_tokens",
        "prompt",
        "request",
        "session",
        "suspected_until",
        "worker_id",
    )

    def __init__(
        self, request: GenerationRequest, *, cancel: Callable[["Generation"], None]
    ) -> None:
        self.request = request
        self.attempt = 0
        self.worker_id = ""
        self.predicted_cached_tokens = 0
        self.session: Session | None = None
        self.placed_at = 0.0
        self.prompt: Prompt | None = None
        self.predicted_output_tokens: int | None = None
        self.is_complete = False
        self.output = bytearray()
        self.num_output_tokens = 0
        self.num_before_attempt = 0
        self.failed: set[tuple[str, int]] = set()
        self.num_failures = 0
        self.fingerprint: bytes | None = None
        self.suspected_until = float("-inf")
        self.deadline_timer: asyncio.TimerHandle | None = None
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._cached_tokens: int | None = None
        self._logprobs: list[Logprobs] = []  # of what was not taken yet
        self._taken = 0
        self._closed = False
        self._end: FinishReason | PrebleError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def request_id(self) -> str:
        """As in the request."""
        return self.request.request_id

    @property
    def awaits_first_token(self) -> bool:
        """Whether the present attempt has yielded nothing yet."""
        return self.num_output_tokens == self.num_before_attempt

    @property
    def attempt_output_tokens(self) -> int:
        """Those of the present attempt."""
        return self.num_output_tokens - self.num_before_attempt

    @property
    def num_read_bytes(self) -> int:
        """Of its output, what its consumer has taken."""
        return self._taken

    @property
    def num_unread_bytes(self) -> int:
        """Of its output, what waits for its consumer."""
        return len(self.output) - self._taken

    @property
    def done(self) -> bool:
        """Whether it has its end; tokens may still wait for the consumer."""
        return self._end is not None

    def cancel(self, *, complete: bool = False) -> None:
        """Ends it with `CANCELLED` and frees its worker; does nothing once it has ended.

        Args:
            complete: not for want of interest: the output has come to its end, a stop string.
        """
        if self._end is None:
            self.is_complete = complete
            self._cancel(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while self._taken == len(self.output) and self._end is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._closed:
            raise StopAsyncIteration
        end = self._end
        if end is None or (self._taken < len(self.output) and isinstance(end, PrebleError)):
            return self._take(None)
        self._closed = True
        if isinstance(end, PrebleError):
            raise end
        return self._take(end)

    def _take(self, finish_reason: FinishReason | None) -> Delta:
        tokens = bytes(memoryview(self.output)[self._taken :])
        self._taken += len(tokens)
        logprobs = None
        if self._logprobs:
            logprobs = Logprobs.joined(self._logprobs)
            self._logprobs = []
        return Delta(
            tokens,
            finish_reason,
            self._cached_tokens,
            self.predicted_cached_tokens,
            self.worker_id,
            logprobs,
        )

    # The dispatcher's side.

    def place(self, placement: Placement, session: Session, *, now: float) -> None:
        """A new attempt runs on `session`."""
        self.attempt = placement.attempt
        self.worker_id = placement.worker_id
        self.predicted_cached_tokens = placement.cached_tokens
        self.session = session
        self.placed_at = now
        self.num_before_attempt = self.num_output_tokens
        session.live[self.request.request_id] = self

    def unplace(self) -> None:
        """The present attempt is over."""
        assert self.session is not None
        del self.session.live[self.request.request_id]
        if self.session.trial is self:
            self.session.trial = None
        self.session = None

    def check_output(self, position: int, size: int) -> None:
        """Nothing is missing before `size` bytes at `position`, nor is that more than was asked.

        Raises:
            PeerError: it is not so.
        """
        expected = self.num_output_tokens
        if position != expected or size % TOKEN_BYTES:
            raise PeerError(
                f"output of {self.request_id} at position {position} in {size} bytes, "
                f"expected position {expected}"
            )
        if expected + size // TOKEN_BYTES > self.request.sampling.max_tokens:
            raise PeerError(f"output of {self.request_id} is longer than its max_tokens")

    def check_logprobs(self, logprobs: Logprobs | None, size: int) -> None:
        """`logprobs` are those of `size` bytes of tokens.

        Raises:
            PeerError: they are not, or are missing.
        """
        num_top = self.request.sampling.top_logprobs
        assert num_top is not None
        if logprobs is None or len(logprobs.chosen) != size:
            raise PeerError(f"output of {self.request_id} without its log probabilities")
        if not len(logprobs.top) == len(logprobs.top_tokens) == num_top * size:
            raise PeerError(f"output of {self.request_id} without {num_top} likeliest tokens each")

    def feed(
        self, tokens: bytes, cached_tokens: int | None, logprobs: Logprobs | None = None
    ) -> None:
        """Output of a step. The cached share of a resumed attempt counts the prompt only."""
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self.output += tokens
        self.num_output_tokens += len(tokens) // TOKEN_BYTES
        if cached_tokens is not None:
            self._cached_tokens = min(cached_tokens, num_tokens(self.request.tokens))
        if self._waiter is not None:
            self._wake()

    def end(self, end: FinishReason | PrebleError) -> None:
        """The one end."""
        assert self._end is None, f"{self.request_id} was settled twice"
        self._end = end
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
