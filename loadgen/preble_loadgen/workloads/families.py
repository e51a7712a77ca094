"""Families of prompts, 91 % of each shared within its family. Pure.

Each family is small enough for one worker, and should meet there.
"""

from collections.abc import Sequence

from preble_loadgen.trace_request import Segment
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.in_flight import in_flight_drafts, num_in_flight
from preble_loadgen.workloads.keyed import Leaf
from preble_loadgen.workloads.options import Rng, Streams, WorkloadOptions
from preble_loadgen.workloads.prompt_tree import PromptTree, private
from preble_loadgen.workloads.workload import Workload

FAMILIES_PER_WORKER = 8
REQUESTS_PER_FAMILY = 40
PROMPT_TOKENS = 2000
SHARED_TOKENS = 1820
OUTPUT_TOKENS = 64


def family_prompts(families: Sequence[Segment], size: int, rng: Rng) -> list[Leaf]:
    """`size` prompts, in every round each family once, in random order."""
    rounds = -(-size // len(families))
    order = [i for _ in range(rounds) for i in rng.permutation(len(families))]
    end = private(PROMPT_TOKENS - SHARED_TOKENS)
    return [Leaf((families[i], end), OUTPUT_TOKENS) for i in order[:size]]


def num_families(options: WorkloadOptions) -> int:
    """As asked for, or what suits so many workers."""
    return options.prefixes or FAMILIES_PER_WORKER * options.workers


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    families = [tree.node(SHARED_TOKENS) for _ in range(num_families(options))]
    size = options.requests or REQUESTS_PER_FAMILY * len(families)
    prompts = family_prompts(families, size, streams.popularity)
    return in_flight_drafts(prompts, num_in_flight(options))


WORKLOAD = Workload(
    summary="Families of prompts that share 91 %, 8 families and 8 requests in flight per worker.",
    variants=frozenset(),
    drafts=_drafts,
)
