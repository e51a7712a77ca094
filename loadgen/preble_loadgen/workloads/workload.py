"""What a workload is: a name, what it imitates, and how its requests are drawn. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.options import Streams, WorkloadOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One of the workloads.

    Attributes:
        summary: what it imitates, in one sentence.
        variants: those of options.VARIANTS that it has.
        drafts: draws the requests, in any order; more than `options.requests` are cut off.
        takes_lengths: whether `options.lengths` means something to it.
        takes_preamble, takes_common: likewise `options.preamble_tokens` and
            `options.common_percent`.
        needs_arrivals: whether it is nothing without recorded or bursty arrivals.
    """

    summary: str
    variants: frozenset[str]
    drafts: Callable[[WorkloadOptions, Streams], list[Draft]]
    takes_lengths: bool = False
    takes_preamble: bool = False
    takes_common: bool = False
    needs_arrivals: bool = False
