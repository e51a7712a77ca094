"""Tool use, after ToolBench: a system prompt, the documents of a tool, a query, agent steps. Pure.

Prompt 1,835 (742) tokens, output 43 (16); 39 (64) requests per tool. Source: arXiv 2407.00023,
table 1. Short prompts are rarer than in the data: 4 % against 11 % have up to 1,024 tokens.
"""

from collections.abc import Sequence

from preble_loadgen.trace_request import Segment
from preble_loadgen.workloads.distributions import Floats, clipped, log_normal, log_normals
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.keyed import (
    POPULARITY_VARIANTS,
    KeyedPrompts,
    Leaf,
    Scale,
    keyed_drafts,
)
from preble_loadgen.workloads.options import Rng, Streams, WorkloadOptions
from preble_loadgen.workloads.popularity import chosen_keys
from preble_loadgen.workloads.prompt_tree import PromptTree
from preble_loadgen.workloads.think_time import think_seconds
from preble_loadgen.workloads.workload import Workload

SCALE = Scale(rate=6.0, keys=150, requests_per_key=39.0)
SYSTEM_TOKENS = 355
CONTEXT_TOKENS = 4096
"""No step is taken from a longer prompt."""
LAST_STEP = 0.7
"""Probability that a step is the last."""
STEPS_PER_QUERY = 1.4


def tool_prompts(options: WorkloadOptions, streams: Streams, tree: PromptTree) -> KeyedPrompts:
    """The content."""
    system = tree.node(SYSTEM_TOKENS)
    size = SCALE.num_keys(options)
    lengths = log_normals(streams.tree, 1090, 680, size)
    tools = [tree.node(clipped(length, 380, 3300)) for length in lengths]
    weights: Floats = streams.popularity.lognormal(3.01, 1.144, size)

    def leaves(tool: int, count: int) -> list[Leaf]:
        drawn: list[Leaf] = []
        while len(drawn) < count:
            drawn += _query(tools[tool].length, streams.lengths, tree)
        drawn = drawn[:count]
        return [drawn[i] for i in streams.lengths.permutation(count)]

    return KeyedPrompts(preamble=(system,), keys=tools, weights=weights, exact=False, leaves=leaves)


def _query(tool_tokens: int, rng: Rng, tree: PromptTree) -> list[Leaf]:
    """The steps on the first query drawn that fits the context."""
    while not (steps := _steps(tool_tokens, rng, tree)):
        pass
    return steps


def _steps(tool_tokens: int, rng: Rng, tree: PromptTree) -> list[Leaf]:
    """A query and the steps that an agent takes on it: each prompt extends the one before."""
    end: tuple[Segment, ...] = (tree.node(clipped(log_normal(rng, 320, 240), 30, 1800)),)
    steps: list[Leaf] = []
    for _ in range(rng.geometric(LAST_STEP)):
        if SYSTEM_TOKENS + tool_tokens + _tokens(end) > CONTEXT_TOKENS:
            break
        output_tokens = int(clipped(rng.gamma(7.3, 5.9), 16, 94))
        steps.append(Leaf(end, output_tokens))
        observation = clipped(log_normal(rng, 230, 230), 10, 1500)
        end = (*end, tree.node(output_tokens + observation))
    return steps


def _tokens(segments: Sequence[Segment]) -> int:
    return sum(segment.length for segment in segments)


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    prompts = tool_prompts(options, streams, tree)
    times = SCALE.arrivals(options, streams)
    if "sessions" not in options.variants:
        return keyed_drafts(prompts, times, options, streams, tree)
    return _sessions(prompts, times, options, streams, tree)


def _sessions(
    prompts: KeyedPrompts,
    times: Floats,
    options: WorkloadOptions,
    streams: Streams,
    tree: PromptTree,
) -> list[Draft]:
    """Each query is a session that begins at its time, as many as make the requests."""
    # The steps of a query come on top of its first, so that sessions begin more slowly.
    starts = times * STEPS_PER_QUERY
    tools = chosen_keys(prompts.weights, starts, options, streams.popularity, exact=False)
    drafts: list[Draft] = []
    for number, (start, tool) in enumerate(zip(starts, tools, strict=True)):
        at = float(start)
        node = prompts.keys[tool]
        for turn, leaf in enumerate(_query(node.length, streams.lengths, tree)):
            think = think_seconds(streams.arrivals) if turn else None
            at += think or 0.0
            drafts.append(
                Draft(
                    at=at,
                    segments=(*prompts.preamble, node, *leaf.segments),
                    output_tokens=leaf.output_tokens,
                    session=f"query-{number}",
                    turn=turn,
                    think_seconds=think,
                )
            )
        if len(drafts) >= len(times):
            break
    return drafts


WORKLOAD = Workload(
    summary="Tool use (ToolBench): a system prompt, one tool's documents, a query, agent steps.",
    variants=POPULARITY_VARIANTS | {"sessions"},
    drafts=_drafts,
)
