"""The values that router, worker and clients share. All are immutable; tokens are packed uint32."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from preble.cost import CostModel


class FinishReason(StrEnum):
    """Why a request ended. Every request ends once, with one of these."""

    STOP = "stop"
    """An end-of-sequence token, a stop token or a stop string."""
    LENGTH = "length"
    """`max_tokens` were generated."""
    CANCELLED = "cancelled"
    """The client, or the router for it, asked to stop."""
    DEADLINE = "deadline"
    """The deadline passed first."""
    REFUSED = "refused"
    """The worker can never run it (longer than its cache or context)."""
    ERROR = "error"
    """The worker's engine failed on it."""


class Phase(IntEnum):
    """What a worker's step loop is doing."""

    STARTING = 0
    IDLE = 1
    COMPUTING = 2
    DRAINING = 3


class WorkerState(StrEnum):
    """What a router takes a worker to be good for at the moment."""

    UNREACHABLE = "unreachable"
    """Its address is known, there is no link."""
    JOINING = "joining"
    """Linked, its cache is not known yet."""
    READY = "ready"
    DRAINING = "draining"
    """Runs what it has, gets nothing new."""
    SUSPECT = "suspect"
    """Linked, but its step loop has gone silent."""


MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the probabilities of some tokens, in packed columns.

    They are the model's own: of the softmax of its logits, before penalties, `temperature`,
    `top_k` and `top_p`.

    Attributes:
        chosen: float32, one per token.
        top_tokens: uint32, the likeliest tokens in the place of each token, likeliest first; as
            many per token as the request asks for.
        top: float32, theirs.
    """

    chosen: bytes
    top_tokens: bytes = b""
    top: bytes = b""

    @classmethod
    def joined(cls, parts: Sequence["Logprobs"]) -> "Logprobs":
        """Those of the tokens of all `parts`, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            b"".join([part.chosen for part in parts]),
            b"".join([part.top_tokens for part in parts]),
            b"".join([part.top for part in parts]),
        )

    def first(self, num_tokens: int) -> "Logprobs":
        """Those of the first tokens only."""
        size = num_tokens * _FLOAT_BYTES
        if size >= len(self.chosen):
            return self
        width = len(self.top) // len(self.chosen) * size
        return Logprobs(self.chosen[:size], self.top_tokens[:width], self.top[:width])


_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How output tokens are drawn, and when output ends.

    Token i of a request depends on (`seed`, i) and the model's numerics alone, so that a request
    resumed elsewhere draws the same tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1
    switch those filters off. Stop strings are the router's business.

    Attributes:
        presence_penalty: taken off the logit of each token that the output has, before all else.
        frequency_penalty: the same once for each time that the output has it.
        top_logprobs: give log probabilities, of the tokens themselves and of so many of the
            likeliest; at most `MAX_TOP_LOGPROBS`. None gives none.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def penalizes(self) -> bool:
        """Whether the next token depends on which the output has."""
        return bool(self.presence_penalty or self.frequency_penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRequest:
    """One attempt at a request as a worker receives it.

    Attributes:
        attempt: counts from 1; output of an older attempt is dropped by the router.
        tokens: packed prompt, followed by what earlier attempts already delivered.
        num_delivered: how many of `tokens` are output of earlier attempts; sampling positions and
            `max_tokens` count from before them.
        namespace: tenant whose cache it may share; "" is the default.
        priority: higher runs first.
        deadline_at: in the worker's clock, None for no deadline.
        predicted_output_tokens: of the whole request, delivered ones included; made once, at the
            router, and the same in every attempt. None when it has no estimate.
        ttft_slo_seconds: objective for the time to the first token; None for the worker's default.
        tbt_slo_seconds: objective for the time between tokens; None for the worker's default.
        tenant: who is charged for it where tenants share a worker fairly. The router says who it
            is, from the API key or the namespace.
    """

    request_id: str
    tokens: bytes
    sampling: SamplingParams
    attempt: int = 1
    num_delivered: int = 0
    namespace: str = ""
    priority: int = 0
    deadline_at: float | None = None
    predicted_output_tokens: int | None = None
    ttft_slo_seconds: float | None = None
    tbt_slo_seconds: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a worker says of itself once, when a router links to it.

    Attributes:
        epoch: differs between any two processes that ever bore this id.
        page_tokens: tokens per page of its cache.
        capacity_tokens: tokens of KV that fit its cache, shared and running together.
        max_batch_tokens: token budget of one step.
        max_sequences: requests that run at the same time.
        context_tokens: longest prompt plus output of one request.
        cost: seconds per step, as profiled or from first principles.
        host_capacity_tokens: tokens of evicted prefixes that fit its host memory, 0 for none.
        host_token_seconds: what a token's KV takes to come from there.
    """

    worker_id: str
    epoch: int
    model: str
    page_tokens: int
    capacity_tokens: int
    max_batch_tokens: int
    max_sequences: int
    context_tokens: int
    vocab_size: int
    cost: CostModel
    host_capacity_tokens: int = 0
    host_token_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """How busy a worker is after a step, all routers' requests together.

    Attributes:
        waiting_prefill_tokens: uncached prompt tokens not computed yet, queued or half done.
        decode_context_tokens: context tokens of the requests that are decoding.
        free_pages: pages that hold nothing.
        cached_pages: pages of the prefix tree that no request uses; they can be evicted.
        used_pages: pages that running requests use, shared ones once.
        tree_pages: pages in the prefix tree, used or not; with `tree_key_sum`, the digest by which
            a router finds that it lost an event.
        tree_key_sum: sum of those pages' keys modulo 2**64.
        prompt_tokens_total, cached_tokens_total: of the requests started since the process began.
        busy_seconds_total: time spent in steps since the process began.
        host_pages: pages held in host memory.
        loaded_tokens_total: of `cached_tokens_total`, those that came from host memory.
    """

    num_waiting: int = 0
    num_running: int = 0
    waiting_prefill_tokens: int = 0
    decode_context_tokens: int = 0
    free_pages: int = 0
    cached_pages: int = 0
    used_pages: int = 0
    tree_pages: int = 0
    tree_key_sum: int = 0
    preemptions_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    busy_seconds_total: float = 0.0
    host_pages: int = 0
    loaded_tokens_total: int = 0


TURNED_AWAY = "the worker is draining"
"""`RequestOutput.error` of a request that came to a worker which is about to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """What one step produced for one request.

    Attributes:
        position: index of `tokens[0]` in the request's output, delivered tokens of earlier
            attempts included; a receiver that expects another position has lost something.
        tokens: packed new tokens, may be empty.
        cached_tokens: prompt tokens served from cache; set with the first token and after,
            None before.
        finish_reason: None while the request goes on.
        error: a sentence for the client when it was refused or failed.
        logprobs: of `tokens`, where the request asks for them.
    """

    request_id: str
    attempt: int
    position: int
    tokens: bytes = b""
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    error: str = ""
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of a finished request. `predicted_cached_tokens` is what the router believed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    predicted_cached_tokens: int = field(default=0)
