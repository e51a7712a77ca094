"""What a replay needs of a cluster, whatever protocol it speaks; and what an answer shows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from preble_loadgen.prompts import Tokens


@dataclass(frozen=True, slots=True)
class Served:
    """What the cluster says of its model; None where it does not say."""

    model: str
    context_tokens: int | None = None
    vocab_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request ready to be sent: greedy, to exactly `output_tokens`. Objectives in seconds, None
    for the workers' defaults."""

    tokens: Tokens
    output_tokens: int
    namespace: str = ""
    seed: int = 0
    ttft_slo_seconds: float | None = None
    tbt_slo_seconds: float | None = None


@dataclass(slots=True, kw_only=True)
class Observation:
    """What an answer has shown so far, times by `time.perf_counter`.

    `on_piece(num_tokens)` is told of each piece; over HTTP a piece counts as one token until the
    closing usage says how many there were.
    """

    on_piece: Callable[[int], None] = lambda _: None
    first_at: float | None = None
    last_at: float | None = None
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    predicted_cached_tokens: int | None = None
    worker_id: str = ""
    finish_reason: str = ""
    error: str = ""
    message: str = ""

    def piece(self, now: float, num_tokens: int) -> None:
        """New tokens arrived."""
        if self.last_at is None:
            self.first_at = now
        else:
            self.gaps.append(now - self.last_at)
        self.last_at = now
        self.on_piece(num_tokens)

    def failed(self, error: str, message: str = "") -> None:
        """The answer will not be complete. The first reason stands."""
        if not self.error:
            self.error, self.message = error, message


class Target(Protocol):
    """A cluster that answers questions."""

    async def served(self) -> Served:
        """What is served.

        Raises:
            ConfigError: nobody answers at the address, or not as a cluster would.
        """

    def prepare(self, question: Question) -> object:
        """Whatever of the sending can be done before it is due."""

    async def ask(self, prepared: object, observation: Observation) -> None:
        """Sends, and reads the answer to its end. Failures are noted in `observation`."""

    async def close(self) -> None:
        """Closes all connections."""
