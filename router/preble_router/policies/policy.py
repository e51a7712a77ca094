"""What a routing policy is: a pure choice over candidates, told the facts it may remember.

A policy reads no clock and draws its luck from the `rng` it is handed. `choose` and `terms` change
nothing, so that a dry run is free; what a policy remembers, it learns from the facts below, which
most policies ignore.
"""

import random
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from preble.types import WorkerSpec
from preble_router.booking import Booking
from preble_router.candidates import Candidates
from preble_router.cluster_tree import ClusterTree
from preble_router.residence import ClusterNode
from preble_router.worker_table import Column, WorkerTable


class Choice(NamedTuple):
    """The chosen worker's slot, and why in a few words."""

    slot: int
    reason: str


class RoutingPolicy(ABC):
    """Base of all policies. A slot is reused after its worker was lost and another joined.

    Attributes:
        shares_fairly: the workers behind it are taken to share fairly among tenants.
    """

    name: ClassVar[str]
    shares_fairly: ClassVar[bool] = False

    @abstractmethod
    def choose(self, candidates: Candidates, rng: random.Random) -> Choice:
        """The worker for `candidates.request`, one of `candidates.open_slots`."""

    def terms(self, candidates: Candidates) -> dict[str, Column]:
        """The named summands of the choice per slot, for explanations."""
        return {}

    # Facts

    def bind(self, tree: ClusterTree, table: WorkerTable) -> None:  # noqa: B027
        """Called once, before anything else: what the policy may read in its ticks."""

    def joined(self, slot: int, spec: WorkerSpec) -> None:  # noqa: B027
        """Another worker has `slot` from now on."""

    def left(self, slot: int) -> None:  # noqa: B027
        """The worker of `slot` was lost, its requests closed."""

    def placed(self, candidates: Candidates, booking: Booking, path_end: ClusterNode) -> None:  # noqa: B027
        """The request of `candidates` was booked; `path_end` is where its path ends in the tree."""

    def started(self, booking: Booking, *, cached_tokens: int, now: float) -> None:  # noqa: B027
        """Its first token came; `cached_tokens` is what the worker really had."""

    def closed(self, booking: Booking, *, output_tokens: int | None, now: float) -> None:  # noqa: B027
        """It ended: well, after `output_tokens`, or broken off, with None."""

    # Time

    def next_wakeup(self) -> float | None:
        """When `tick` wants to be called next; None for never."""
        return None

    def tick(self, *, now: float) -> None:  # noqa: B027
        """Do what is due at `now`."""
