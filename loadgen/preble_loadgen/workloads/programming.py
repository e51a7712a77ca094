"""Programming, after APPS: demonstrations that all share, a problem, a short end. Pure.

Prompt 3,871 (1,656) tokens, output 190 (343); requests per problem as it has solutions. Source:
arXiv 2407.00023, table 1. The published load generator caps outputs at 512: variant as-sent.
Its micro-benchmark varies the demonstrations: 0, 750, 1,500, 2,400 tokens.
"""

from preble_loadgen.workloads.distributions import clipped, log_normals
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.keyed import (
    POPULARITY_VARIANTS,
    KeyedPrompts,
    Leaf,
    Scale,
    keyed_drafts,
)
from preble_loadgen.workloads.options import Streams, WorkloadOptions
from preble_loadgen.workloads.prompt_tree import PromptTree, private
from preble_loadgen.workloads.workload import Workload

SCALE = Scale(rate=2.25, keys=80, requests_per_key=17.5)
DEMONSTRATION_TOKENS = 2400
TAIL_TOKENS = 20
SENT_OUTPUT_TOKENS = 512


def problem_prompts(options: WorkloadOptions, streams: Streams, tree: PromptTree) -> KeyedPrompts:
    """The content."""
    asked = options.preamble_tokens
    preamble_tokens = DEMONSTRATION_TOKENS if asked is None else asked
    demonstrations = (tree.node(preamble_tokens),) if preamble_tokens else ()
    size = SCALE.num_keys(options)
    lengths = log_normals(streams.tree, 1600, 2300, size)
    longest_output = SENT_OUTPUT_TOKENS if "as-sent" in options.variants else 4000

    def leaves(_problem: int, count: int) -> list[Leaf]:
        outputs = log_normals(streams.lengths, 195, 360, count)
        return [
            Leaf((private(TAIL_TOKENS),), int(clipped(output, 8, longest_output)))
            for output in outputs
        ]

    return KeyedPrompts(
        preamble=demonstrations,
        keys=[tree.node(clipped(length, 120, 24000)) for length in lengths],
        weights=log_normals(streams.popularity, 23, 45, size),
        exact=False,
        leaves=leaves,
    )


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    prompts = problem_prompts(options, streams, tree)
    return keyed_drafts(prompts, SCALE.arrivals(options, streams), options, streams, tree)


WORKLOAD = Workload(
    summary="Programming (APPS): demonstrations that all share, then one of many problems.",
    variants=POPULARITY_VARIANTS | {"as-sent"},
    drafts=_drafts,
    takes_preamble=True,
)
