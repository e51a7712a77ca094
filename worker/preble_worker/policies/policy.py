"""What a local policy is."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """A waiting request, as far as policies may look at it.

    Attributes:
        num_tokens: tokens it must have KV for before it yields its next token.
        cached_tokens: how many of them are cached now.
        arrived_at: in seconds.
    """

    @property
    def num_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def arrived_at(self) -> float: ...


C = TypeVar("C", bound=Candidate)


class LocalPolicy(Protocol):
    """Decides in which order waiting requests start."""

    def order(self, candidates: Sequence[C]) -> Iterable[C]:
        """The candidates, who to start first in front.

        Args:
            candidates: oldest first. The scheduler stops taking when a batch is full, so a lazy
                order costs no more than what is taken from it.
        """
        ...

    def started(self, candidate: Candidate) -> None:
        """`candidate` was taken from the last order. Policies with a memory note it."""
        ...
