"""Embodied agents, after ALFWorld: in an environment, step by step, each waiting for its answer.

Prompt 2,285 (471) tokens, output 16 (13); 48 (8) steps per environment. Source: arXiv 2407.00023,
table 1; few-shot lengths are those of ReAct's prompt files. An environment's id heads its prompts,
so environments share nothing, as the published load generator sends them; the variant study has the
few-shot examples in front, which environments of one task type share. Pure.
"""

import math

from preble_loadgen.trace_request import Segment
from preble_loadgen.workloads.arrival_times import arrival_times
from preble_loadgen.workloads.distributions import clipped, log_normal
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.keyed import Scale
from preble_loadgen.workloads.options import Streams, WorkloadOptions
from preble_loadgen.workloads.prompt_tree import PromptTree
from preble_loadgen.workloads.think_time import think_seconds
from preble_loadgen.workloads.workload import Workload

SCALE = Scale(rate=4.0, keys=115, requests_per_key=45.4)
"""45.4 steps remain of 48 (8) where none has more than 50."""
FEW_SHOT_TOKENS = (1242, 1720, 1500, 1721, 1487, 1535)
TASK_SHARES = (0.18, 0.23, 0.17, 0.16, 0.13, 0.13)
HEADER_TOKENS = 26
INTRODUCTION_TOKENS = 20
MAX_STEPS = 50
SENT_OUTPUT_TOKENS = 26


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    beginnings = _beginnings(options, streams, tree)
    rate = SCALE.requests_per_second(options) / SCALE.requests_per_key
    starts = arrival_times(len(beginnings), rate, options, streams.arrivals)
    return [
        draft
        for number, (start, beginning) in enumerate(zip(starts, beginnings, strict=True))
        for draft in _episode(number, float(start), beginning, options, streams, tree)
    ]


def _beginnings(
    options: WorkloadOptions, streams: Streams, tree: PromptTree
) -> list[tuple[Segment, ...]]:
    """The first prompt of every environment."""
    size = SCALE.num_keys(options)
    if options.requests is not None and options.prefixes is None:
        # Short episodes must not leave requests wanting; what is too much is cut off.
        size += 1 + math.ceil(math.sqrt(size) / 2)
    introduction = tree.node(INTRODUCTION_TOKENS)
    few_shots = [tree.node(length) for length in FEW_SHOT_TOKENS]
    beginnings: list[tuple[Segment, ...]] = []
    for _ in range(size):
        few_shot = few_shots[streams.tree.choice(len(few_shots), p=TASK_SHARES)]
        environment = clipped(streams.tree.normal(150, 25), 80, 230)
        if "study" in options.variants:
            beginnings.append((introduction, few_shot, tree.node(environment)))
        else:
            beginnings.append((tree.node(HEADER_TOKENS + few_shot.length + environment),))
    return beginnings


def _episode(
    number: int,
    at: float,
    prompt: tuple[Segment, ...],
    options: WorkloadOptions,
    streams: Streams,
    tree: PromptTree,
) -> list[Draft]:
    rng = streams.lengths
    drafts: list[Draft] = []
    for turn in range(int(clipped(rng.normal(48, 8), 8, MAX_STEPS))):
        think = think_seconds(streams.arrivals) if turn else None
        at += think or 0.0
        output_tokens = int(clipped(log_normal(rng, 16, 13), 3, 100))
        if "as-sent" in options.variants:
            output_tokens = min(output_tokens, SENT_OUTPUT_TOKENS)
        drafts.append(
            Draft(
                at=at,
                segments=prompt,
                output_tokens=output_tokens,
                session=f"environment-{number}",
                turn=turn,
                think_seconds=think,
            )
        )
        observation = clipped(log_normal(rng, 9.5, 16), 1, 150)
        prompt = (*prompt, tree.node(output_tokens + observation))
    return drafts


WORKLOAD = Workload(
    summary="Embodied agents (ALFWorld): closed loop, each prompt extends the one before.",
    variants=frozenset({"bursty", "study", "as-sent"}),
    drafts=_drafts,
)
