"""One request from its arrival to its end, as the simulated router and its client see it."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from preble.page_keys import pack_tokens
from preble.types import SamplingParams, WorkerRequest
from preble_loadgen.report import RequestRecord
from preble_loadgen.trace_request import TraceRequest
from preble_router.lengths.predictor import Prompt
from preble_router.stimuli import Placement
from preble_worker.simulated_tokens import simulated_tokens

if TYPE_CHECKING:
    from preble_loadgen.simulator.session import Session


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """A live request.

    Attributes:
        tokens: packed prompt.
        asked_at: when its client sent it. deadline_at: when it must have ended, None for any time.
        attempt: of the present placement, from 1.
        session: where it runs, None while no worker has it.
        num_output: output tokens delivered, by all attempts.
        num_before: of them, by the attempts before the present one.
        times: when the output left its workers, in the order of delivery.
        stated_max_tokens: limit as its client states it; the trace knows when it really ends.
        prompt: as predictors of its length see it; None before its first placement.
        predicted_output_tokens: of the whole request, made with its first placement; None before.
        failed: (worker id, session serial) of the attempts that broke off.
    """

    request: TraceRequest
    request_id: str
    tokens: bytes
    num_prompt_tokens: int
    sampling: SamplingParams
    stated_max_tokens: int
    vocab_size: int
    asked_at: float
    deadline_at: float | None = None
    attempt: int = 0
    session: "Session | None" = None
    worker_id: str = ""
    num_output: int = 0
    num_before: int = 0
    cached_tokens: int | None = None
    predicted_cached_tokens: int = 0
    prompt: Prompt | None = None
    predicted_output_tokens: int | None = None
    times: list[Sequence[float]] = field(default_factory=list)
    failed: set[tuple[str, tuple[int, int]]] = field(default_factory=set)

    @property
    def needed_tokens(self) -> int:
        """Prompt plus output."""
        return self.num_prompt_tokens + self.sampling.max_tokens

    @property
    def tenant(self) -> str:
        """Who is charged."""
        return self.request.tenant or self.request.namespace

    @property
    def remaining_output_tokens(self) -> int | None:
        """What is left of the predicted output, at least one; None before it was predicted."""
        predicted = self.predicted_output_tokens
        return None if predicted is None else max(1, predicted - self.num_output)

    def known_tokens(self) -> bytes:
        """The packed prompt, and the output delivered so far."""
        if not self.num_output:
            return self.tokens
        output = simulated_tokens(self.tokens, self.sampling.seed, self.num_output, self.vocab_size)
        return self.tokens + pack_tokens(output.astype(np.uint32))

    def place(self, placement: Placement, session: "Session") -> None:
        """A new attempt runs on `session`."""
        self.attempt = placement.attempt
        self.worker_id = placement.worker_id
        self.predicted_cached_tokens = placement.cached_tokens
        self.num_before = self.num_output
        if self.predicted_output_tokens is None:
            self.predicted_output_tokens = max(1, round(placement.predicted_output_tokens))
        self.session = session
        session.live[self.request_id] = self

    def unplace(self) -> None:
        """The present attempt is over."""
        assert self.session is not None
        del self.session.live[self.request_id]
        self.session = None

    def attempt_request(self, tokens: bytes, placement: Placement) -> WorkerRequest:
        """The present attempt as its worker receives it; `tokens` are the known ones."""
        return WorkerRequest(
            request_id=self.request_id,
            tokens=tokens,
            sampling=self.sampling,
            attempt=placement.attempt,
            num_delivered=self.num_output,
            namespace=self.request.namespace,
            deadline_at=self.deadline_at,
            predicted_output_tokens=self.predicted_output_tokens,
            ttft_slo_seconds=self.request.ttft_slo_seconds,
            tbt_slo_seconds=self.request.tbt_slo_seconds,
            tenant=self.tenant,
        )

    def receive(self, times: Sequence[float], cached_tokens: int | None) -> None:
        """One token came from each of the steps that ended at `times`."""
        self.num_output += len(times)
        self.times.append(times)
        if cached_tokens is not None:
            self.cached_tokens = min(cached_tokens, self.num_prompt_tokens)

    def record(
        self, *, ended_at: float, wire_seconds: float, finish_reason: str, error: str
    ) -> RequestRecord:
        """What happened to it; each token reached the client `wire_seconds` after its step."""
        received = np.concatenate(self.times) + wire_seconds if self.times else np.zeros(0)
        return RequestRecord(
            index=self.request.index,
            scheduled_at=self.asked_at,
            sent_at=self.asked_at,
            ended_at=ended_at,
            first_at=float(received[0]) if len(received) else None,
            last_at=float(received[-1]) if len(received) else None,
            gaps=array("d", np.diff(received).tobytes()),
            prompt_tokens=self.num_prompt_tokens,
            expected_output_tokens=self.request.output_tokens,
            output_tokens=self.num_output,
            cached_tokens=self.cached_tokens or 0,
            predicted_cached_tokens=self.predicted_cached_tokens,
            predicted_output_tokens=self.predicted_output_tokens,
            worker_id=self.worker_id,
            session=self.request.session,
            namespace=self.request.namespace,
            finish_reason=finish_reason,
            error=error,
        )
