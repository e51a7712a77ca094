"""What a local policy is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol, TypeVar, runtime_checkable

from preble.cost import CostModel

UNMEASURED = CostModel(
    name="unmeasured",
    fixed=0.02,
    per_prefill_token=5e-5,
    per_attention=0.0,
    per_decode=1e-4,
    per_context_token=1e-8,
)
"""What policies count with where nobody told them what steps cost."""


WINDOW = 128
"""Waiting requests that a policy is shown in one step: enough for its choice to matter, and few
enough for a step to cost the same however long the queue is. The window moves on as its oldest
start."""

WIDE_WINDOW = 1024
"""For policies under which the oldest may be the last to start: they would clog a narrow one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """What policies are made with; each takes what it needs.

    Attributes:
        cost: seconds per step of this worker.
        age_escape_seconds: a wait after which a request is overdue.
        ttft_slo_seconds: objective for the first token of requests that state none.
        swap_token_seconds: what a token's pages take to cross to the host and back beside the
            steps; infinite where there is no host tier.
    """

    cost: CostModel = UNMEASURED
    age_escape_seconds: float = 10.0
    ttft_slo_seconds: float = 1.0
    swap_token_seconds: float = inf


class Candidate(Protocol):
    """A live request, as far as policies may look at it.

    Attributes:
        num_tokens: tokens it must have KV for before it yields its next token.
        cached_tokens: how many of them are cached now.
        num_missing: how many of them are neither cached nor computed; 0 while it decodes.
        num_generated: output tokens, as of the last `observe` if it runs.
        max_tokens: limit of the output.
        predicted_output_tokens: of the whole output; None where nobody predicted it.
        ttft_slo_seconds: objective for its first token, None for the worker's default.
        tenant: who is charged for it.
        arrived_at: in seconds.
        waiting_since: when it arrived or was last preempted, in seconds.
        waited_seconds: all its waits together, but the one that goes on.
        standing: what the policy remembers of it. Nobody else writes it, and it ends with the
            request; None until the policy has looked.
    """

    standing: Any

    @property
    def num_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def num_missing(self) -> int: ...
    @property
    def num_generated(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def predicted_output_tokens(self) -> int | None: ...
    @property
    def ttft_slo_seconds(self) -> float | None: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrived_at(self) -> float: ...
    @property
    def waiting_since(self) -> float: ...
    @property
    def waited_seconds(self) -> float: ...


C = TypeVar("C", bound=Candidate)


class LocalPolicy(Protocol):
    """Decides in which order waiting requests start.

    Attributes:
        window: how many waiting requests it is shown, the oldest of them.
        bounds_waits: whether its order itself sees to it that nobody starves, so that the queue's
            age escape is left to it.
    """

    @property
    def window(self) -> int: ...
    @property
    def bounds_waits(self) -> bool: ...

    def order(self, candidates: Sequence[C], *, now: float) -> Iterable[C]:
        """The candidates, who to start first in front.

        Args:
            candidates: oldest first. The scheduler stops taking when a batch is full, so a lazy
                order costs no more than what is taken from it.
        """
        ...

    def started(self, candidate: Candidate) -> None:
        """`candidate` was taken from the last order. Policies with a memory note it."""
        ...

    def ended(self, candidate: Candidate, *, finished: bool) -> None:
        """`candidate` is no more; its `num_generated` is exact. Not `finished`: it was broken off,
        and its length says nothing.
        """
        ...


@runtime_checkable
class RunningPolicy(Protocol):
    """What a policy has besides, that looks at running requests too.

    It does so in *reviews*, every few steps while requests wait, and whenever one came.
    """

    def observe(self, waiting: Sequence[C], running: Sequence[C], *, now: float) -> None:
        """Note how far everybody is; first in a review."""
        ...

    def dispensable(self, running: Sequence[C], *, now: float) -> list[C]:
        """Who may be taken out for others, who to take out first in front."""
        ...

    def outranks(self, waiting: Candidate, running: Candidate, *, now: float) -> bool:
        """Whether `waiting` may take the place of `running`, one of the dispensable.

        It must also come first in `order` when both wait, or they would change places for ever.
        """
        ...


@runtime_checkable
class ClassedPolicy(Protocol):
    """What a policy has besides, that knows of many at once whether they outrank others."""

    def outrank_any(self, waiting: Sequence[C], running: Sequence[C]) -> bool:
        """Whether any of `waiting` outranks any of `running`."""
        ...


@runtime_checkable
class WaitEstimator(Protocol):
    """What a policy has besides, that knows how long a request has still to wait."""

    def estimated_wait(self, candidate: Candidate) -> float:
        """Seconds until it starts, or would if it were preempted, as of the last review."""
        ...


@runtime_checkable
class OvertakingPolicy(Protocol):
    """What a policy has besides, under which prompts that have begun are not always first."""

    def overtakes(self, waiting: Candidate, running: Candidate) -> bool:
        """Whether the prompt of `waiting` is to be computed before what is left of that of
        `running`. If it is of anybody, then it also comes first in `order`.
        """
        ...
