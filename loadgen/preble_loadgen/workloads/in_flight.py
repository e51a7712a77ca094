"""So many requests kept in flight, each client sending its next once it has its answer. Pure."""

from collections.abc import Sequence

from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.keyed import Leaf
from preble_loadgen.workloads.options import WorkloadOptions

IN_FLIGHT_PER_WORKER = 8
TURN_SECONDS = 1.0
"""Estimate of an answer's time, for `at`."""


def num_in_flight(options: WorkloadOptions) -> int:
    """As asked for, or what suits so many workers: 32 for 4."""
    return options.in_flight or IN_FLIGHT_PER_WORKER * options.workers


def in_flight_drafts(
    prompts: Sequence[Leaf], in_flight: int, *, start_at: float = 0.0
) -> list[Draft]:
    """`prompts` in order, the first `in_flight` at once."""
    return [
        Draft(
            at=start_at + number // in_flight * TURN_SECONDS,
            segments=prompt.segments,
            output_tokens=prompt.output_tokens,
            session=f"client-{number % in_flight}",
            turn=number // in_flight,
            think_seconds=0.0 if number >= in_flight else None,
        )
        for number, prompt in enumerate(prompts)
    ]
