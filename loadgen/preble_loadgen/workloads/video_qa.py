"""Questions about videos, after NExT-QA: a long video, a short question, a word as answer. Pure.

Prompt 9,865 (5,976) tokens, output 4 (1.5); 8.6 (2) questions per video. Source: arXiv 2407.00023,
table 1; quantiles of the video lengths from the data set's test.csv. The published load generator
crops videos to 8,192 tokens and asks more about longer ones: variant as-sent.
"""

import numpy as np

from preble_loadgen.workloads.distributions import clipped, from_quantiles
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

SCALE = Scale(rate=3.5, keys=60, requests_per_key=8.5)
PREAMBLE_TOKENS = 14
SHARES = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 1.0)
VIDEO_TOKENS = (2560, 2661, 3019, 3480, 5145, 7833, 12575, 19200, 23014, 24000)
CROP_TOKENS = 8192


def video_prompts(options: WorkloadOptions, streams: Streams, tree: PromptTree) -> KeyedPrompts:
    """The content."""
    preamble = tree.node(PREAMBLE_TOKENS)
    is_sent = "as-sent" in options.variants
    longest = CROP_TOKENS - PREAMBLE_TOKENS if is_sent else VIDEO_TOKENS[-1]
    size = SCALE.num_keys(options)
    lengths = np.array([from_quantiles(streams.tree, SHARES, VIDEO_TOKENS) for _ in range(size)])
    videos = [tree.node(min(length, longest)) for length in lengths]
    questions = np.clip(np.round(streams.popularity.normal(8.56, 1.99, size)), 1, 13)

    def leaves(_video: int, count: int) -> list[Leaf]:
        return [_question(streams.lengths) for _ in range(count)]

    return KeyedPrompts(
        preamble=(preamble,),
        keys=videos,
        weights=np.array([float(video.length) for video in videos]) if is_sent else questions,
        exact=True,
        leaves=leaves,
    )


def _question(rng: Rng) -> Leaf:
    question = clipped(rng.normal(28.7, 7.8), 10, 70)
    answer = 1 + int(clipped(round(rng.normal(3.2, 1.6)), 1, 11))
    return Leaf((private(question),), answer)


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    prompts = video_prompts(options, streams, tree)
    return keyed_drafts(prompts, SCALE.arrivals(options, streams), options, streams, tree)


WORKLOAD = Workload(
    summary="Video questions (NExT-QA): a long video, some questions each, answers of a word.",
    variants=POPULARITY_VARIANTS | {"singles", "as-sent"},
    drafts=_drafts,
)
