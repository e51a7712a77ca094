"""The common-share micro-benchmark: a head that all prompts have, then one of many prefixes. Pure.

The first `common_percent` of every prompt is the same, and the rest one of 30 prefixes per worker,
but for an end of its own. Source: the published load generator's micro-benchmark (60 prefixes,
1,800 requests and 6 requests/s for two GPUs; arXiv 2407.00023), which sweeps 0, 20, 40, 60 and
80 %. The lengths are ours.
"""

import numpy as np

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

SCALE = Scale(rate=3.0, keys=30, requests_per_key=30.0)
COMMON_PERCENT = 40.0
PROMPT_TOKENS = 4000
TAIL_TOKENS = 20
OUTPUT_TOKENS = 64


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    percent = COMMON_PERCENT if options.common_percent is None else options.common_percent
    common = round(PROMPT_TOKENS * percent / 100)
    preamble = (tree.node(common),) if common else ()
    size = SCALE.num_keys(options)
    leaf = Leaf((private(TAIL_TOKENS),), OUTPUT_TOKENS)
    prompts = KeyedPrompts(
        preamble=preamble,
        keys=[tree.node(PROMPT_TOKENS - TAIL_TOKENS - common) for _ in range(size)],
        weights=np.ones(size),
        exact=False,
        leaves=lambda _key, count: [leaf] * count,
    )
    return keyed_drafts(prompts, SCALE.arrivals(options, streams), options, streams, tree)


WORKLOAD = Workload(
    summary="A head that all prompts share (--common-percent of each), then one of many prefixes.",
    variants=POPULARITY_VARIANTS,
    drafts=_drafts,
    takes_common=True,
)
