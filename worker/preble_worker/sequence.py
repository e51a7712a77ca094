"""One live request as the worker's scheduler sees it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import xxhash

from preble.page_keys import TOKEN_BYTES, namespace_page, namespace_seed
from preble.types import FinishReason, Logprobs, RequestOutput, WorkerRequest
from preble_worker.config import SchedulerConfig
from preble_worker.eviction import CacheNode
from preble_worker.kv_form import KvForm
from preble_worker.page_cache import NOT_LOOKED_UP, PageArray

ALL_PAGES = 1 << 62
"""More than any request has."""


class Stage(Enum):
    """Where a request is in its life. Preemption leads back from the middle ones to WAITING."""

    WAITING = auto()
    LOADING = auto()
    """It has a slot, and its pages are on their way from the host."""
    PREFILL = auto()
    DECODE = auto()
    ENDED = auto()


@dataclass(slots=True)
class Fetched:
    """Pages that come in from the host for a request that waits, those from number `first` on.

    `node` holds those before.
    """

    node: CacheNode
    first: int
    pages: PageArray


class Sequence:
    """A request with its tokens, its place in the queue and its grip on pages.

    Attributes:
        tokens: packed tokens to prefill: the prompt, and all output known when it was queued.
        generated: packed output since then; while it decodes, the newest tokens are still in
            `DecodeRows`.
        num_tokens: of `tokens`.
        num_prompt_tokens: without any output.
        num_output: output tokens known, those delivered by earlier attempts included; exact
            while it is not decoding.
        order: place in the order of arrival; kept through preemption, so that a preempted
            request resumes before newer ones.
        prefix: what the cache held of `tokens` when last looked up.
        cached_tokens: of `tokens`, as of that lookup, those in host memory included; what policies
            see.
        served_from_cache: prompt tokens that came from cache when it first ran, None before.
        slot: row in the tables while it runs.
        node: the pinned end of its shared path, None while it waits.
        num_held: pages of that path, the first ones of its table row.
        num_pages: entries of its table row, shared and private.
        num_exact: pages that may be shared once computed; what rests on quantized or compact pages
            may not.
        form: in which what it computes is kept.
        num_computed: tokens with KV; exact while it is not decoding.
        has_output: whether a token of this attempt was handed out.
        chunk: prefill tokens of it in the batch under way.
        computing: the key under which it stands as the one who computes its next page.
        following: (request, its progress) that this one last waited for, and since which step.
        num_generated: output tokens as policies see them: exact while it waits and when it ended,
            else as of the last review.
        is_lost: it waits, and can no longer meet its deadline.
        num_pauses: how often it was preempted with output, each of which a client saw as a gap.
        waiting_since, waited_seconds: since when it waits, and how long it did before.
        standing: what the policy remembers of it.
        fetched: what comes in, or came, ahead of its start; None where nothing does.
        end: set when it was cancelled while a batch with it was under way.
    """

    __slots__ = (
        "arrived_at",
        "attempt",
        "cached_tokens",
        "chunk",
        "computing",
        "deadline_at",
        "end",
        "fetched",
        "followed_since",
        "following",
        "form",
        "generated",
        "has_output",
        "is_lost",
        "namespace_page",
        "node",
        "num_computed",
        "num_exact",
        "num_generated",
        "num_held",
        "num_output",
        "num_pages",
        "num_pauses",
        "num_prompt_tokens",
        "num_tokens",
        "order",
        "predicted_output_tokens",
        "prefix",
        "priority",
        "prompt_hash",
        "request_id",
        "sampling",
        "seed",
        "served_from_cache",
        "slot",
        "stage",
        "standing",
        "stop_ids",
        "tbt_slo_seconds",
        "tenant",
        "tokens",
        "ttft_slo_seconds",
        "waited_seconds",
        "waiting_since",
    )

    def __init__(
        self,
        request: WorkerRequest,
        *,
        order: int,
        arrived_at: float,
        page_bytes: int,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        sampling = request.sampling
        num_tokens = len(request.tokens) // TOKEN_BYTES
        self.request_id = request.request_id
        self.attempt = request.attempt
        self.sampling = sampling
        self.priority = request.priority
        self.deadline_at = request.deadline_at
        self.order = order
        self.arrived_at = arrived_at
        self.stop_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            self.stop_ids |= frozenset(eos_token_ids)

        self.tokens = request.tokens
        self.generated = bytearray()
        self.num_tokens = num_tokens
        self.num_prompt_tokens = num_tokens - request.num_delivered
        self.num_output = request.num_delivered
        prompt = request.tokens[: self.num_prompt_tokens * TOKEN_BYTES]
        self.prompt_hash = xxhash.xxh3_64_intdigest(prompt)
        self.seed = namespace_seed(request.namespace)
        self.namespace_page = namespace_page(request.namespace, page_bytes)

        self.predicted_output_tokens = request.predicted_output_tokens
        self.ttft_slo_seconds = request.ttft_slo_seconds
        self.tbt_slo_seconds = request.tbt_slo_seconds
        self.tenant = request.tenant or request.namespace
        self.num_generated = request.num_delivered
        self.waiting_since = arrived_at
        self.waited_seconds = 0.0
        self.standing: Any = None

        self.stage = Stage.WAITING
        self.prefix = NOT_LOOKED_UP
        self.cached_tokens = 0
        self.served_from_cache: int | None = None
        self.has_output = False
        self.is_lost = False
        self.num_pauses = 0
        self.slot = 0
        self.node: CacheNode | None = None
        self.num_held = 0
        self.num_pages = 0
        self.num_exact = ALL_PAGES
        self.form = KvForm.FULL
        self.num_computed = 0
        self.chunk = 0
        self.computing: tuple[CacheNode, bytes] | None = None
        self.following: tuple[Sequence, int] | None = None
        self.followed_since = 0
        self.fetched: Fetched | None = None
        self.end: FinishReason | None = None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request_id!r}, {self.stage.name}, {self.num_computed} of "
            f"{self.num_tokens} + {len(self.generated) // TOKEN_BYTES} tokens)"
        )

    @property
    def num_missing(self) -> int:
        """Tokens whose KV is neither computed nor, as far as known, cached."""
        if self.stage is Stage.WAITING:
            return self.num_tokens - self.cached_tokens
        return self.num_tokens - self.num_computed

    @property
    def is_compact(self) -> bool:
        """Whether what it computes is in another form than the full one."""
        return self.form is not KvForm.FULL

    @property
    def max_tokens(self) -> int:
        """Limit of the output."""
        return self.sampling.max_tokens

    def reusable_path(self) -> bytes:
        """What it may take from the cache: all full pages before its last token.

        The last token is always computed, because its logits yield the next.
        """
        width = len(self.namespace_page)
        end = (self.num_tokens - 1) * TOKEN_BYTES
        return self.namespace_page + self.tokens[: end - end % width]

    def path(self, num_pages: int) -> bytes:
        """Its first `num_pages` pages of tokens, behind the namespace's page."""
        end = num_pages * len(self.namespace_page)
        tokens = self.tokens[:end]
        if end > len(tokens):
            tokens += self.generated[: end - len(tokens)]
        return self.namespace_page + tokens

    def next_own_page(self) -> bytes:
        """The tokens of the page after those it holds, b"" if it is not a full one."""
        return self.page(self.num_held)

    def page(self, number: int) -> bytes:
        """The tokens of a page, the first is 0; b"" if it is not a full one. Those generated since
        the last wait do not count.
        """
        width = len(self.namespace_page)
        page = self.tokens[number * width : (number + 1) * width]
        return page if len(page) == width else b""

    def reason_to_end(self, token: int, num_output: int) -> FinishReason | None:
        """Whether `token`, as the last of `num_output` tokens, ends the request.

        A token that stops the output belongs to it.
        """
        if token in self.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if num_output >= self.sampling.max_tokens else None

    def output(
        self,
        tokens: bytes = b"",
        logprobs: Logprobs | None = None,
        finish_reason: FinishReason | None = None,
        error: str = "",
    ) -> RequestOutput:
        """What to say of it when `tokens` follow the `num_output` tokens known before."""
        return RequestOutput(
            request_id=self.request_id,
            attempt=self.attempt,
            position=self.num_output,
            tokens=tokens,
            cached_tokens=self.served_from_cache if self.has_output else None,
            finish_reason=finish_reason,
            error=error,
            logprobs=logprobs,
        )

    def why_never(self, config: SchedulerConfig) -> str:
        """Why it can never run under `config`, "" if it can."""
        if self.num_prompt_tokens < 1:
            return "The prompt has no tokens."
        context, pool = config.context_tokens, config.num_pages * config.page_tokens
        num_tokens = self.num_prompt_tokens + self.sampling.max_tokens
        if num_tokens <= min(context, pool):
            return ""
        what = "context" if context <= pool else "KV cache"
        return (
            f"The prompt of {self.num_prompt_tokens} tokens and up to {self.sampling.max_tokens} "
            f"output tokens make {num_tokens}, more than the worker's {what} of "
            f"{min(context, pool)} tokens."
        )

    def requeue(self) -> None:
        """Become a waiting request again that has to prefill all it knows."""
        self.num_pauses += self.has_output
        self.tokens += bytes(self.generated)
        self.generated.clear()
        self.num_tokens = len(self.tokens) // TOKEN_BYTES
        self.num_generated = self.num_output
        self.stage = Stage.WAITING
        self.prefix = NOT_LOOKED_UP
        self.cached_tokens = 0
        self.node = None
        self.num_held = self.num_pages = self.num_computed = 0
        self.num_exact = ALL_PAGES
        self.form = KvForm.FULL
        self.following = None

    def finish(self) -> None:
        """Let go of everything large; lists that drop it late may still refer to it."""
        self.stage = Stage.ENDED
        self.tokens = b""
        self.generated.clear()
        self.prefix = NOT_LOOKED_UP
        self.following = None


def newest_of_lowest_priority(sequences: Iterator[Sequence]) -> Sequence:
    """Whom to preempt."""
    return min(sequences, key=lambda sequence: (sequence.priority, -sequence.order))
