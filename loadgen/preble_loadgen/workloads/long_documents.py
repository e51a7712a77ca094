"""Questions about long documents, after LooGLE: some about each document, short answers. Pure.

Prompt 23,474 (6,105) tokens, output 16 (9.9); 18 (8.6) questions per document. Source: arXiv
2407.00023, table 1. The published load generator forces outputs of 45 tokens: variant as-sent.
"""

import numpy as np

from preble_loadgen.workloads.distributions import clipped, log_normal, log_normals
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.keyed import (
    POPULARITY_VARIANTS,
    KeyedPrompts,
    Leaf,
    Scale,
    keyed_drafts,
)
from preble_loadgen.workloads.options import Rng, Streams, WorkloadOptions
from preble_loadgen.workloads.prompt_tree import PromptTree, private
from preble_loadgen.workloads.workload import Workload

SCALE = Scale(rate=0.35, keys=12, requests_per_key=18.4)
PREAMBLE_TOKENS = 13
LONGEST_TOKENS = 32568
SENT_OUTPUT_TOKENS = 45


def document_prompts(options: WorkloadOptions, streams: Streams, tree: PromptTree) -> KeyedPrompts:
    """The content."""
    preamble = tree.node(PREAMBLE_TOKENS)
    size = SCALE.num_keys(options)
    lengths = np.clip(streams.tree.normal(23300, 6900, size), 8000, LONGEST_TOKENS)
    questions = np.clip(np.round(log_normals(streams.popularity, 18.6, 8.6, size)), 2, 60)
    is_sent = "as-sent" in options.variants

    def leaves(_document: int, count: int) -> list[Leaf]:
        return [_question(streams.lengths, is_sent=is_sent) for _ in range(count)]

    return KeyedPrompts(
        preamble=(preamble,),
        keys=[tree.node(float(length)) for length in lengths],
        weights=questions,
        exact=True,
        leaves=leaves,
    )


def _question(rng: Rng, *, is_sent: bool) -> Leaf:
    question = clipped(rng.normal(15, 4.3), 6, 40)
    answer = int(clipped(log_normal(rng, 16, 9.9), 2, 90))
    return Leaf((private(question),), SENT_OUTPUT_TOKENS if is_sent else answer)


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    prompts = document_prompts(options, streams, tree)
    return keyed_drafts(prompts, SCALE.arrivals(options, streams), options, streams, tree)


WORKLOAD = Workload(
    summary="Long-document questions (LooGLE): 20,000 tokens and more, short answers.",
    variants=POPULARITY_VARIANTS | {"singles", "as-sent"},
    drafts=_drafts,
)
