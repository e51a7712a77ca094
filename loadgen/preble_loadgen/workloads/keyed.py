"""Prompts of the form: what all share, one of many keys, an end of their own. Pure.

             ┌── tool 1 ──── query …
preamble ────┼── tool 2 ──── query …
             └── tool 3 ──── query …
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from preble_loadgen.trace_request import Segment
from preble_loadgen.workloads.arrival_times import arrival_times
from preble_loadgen.workloads.distributions import Floats
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.options import Streams, WorkloadOptions
from preble_loadgen.workloads.popularity import Keys, chosen_keys
from preble_loadgen.workloads.prompt_tree import PromptTree

SINGLES_SHARE = 0.1
POPULARITY_VARIANTS = frozenset({"even", "zipf", "bursty", "drift", "hot-burst"})


@dataclass(frozen=True, slots=True)
class Leaf:
    """What follows the key in one prompt, and the answer's length."""

    segments: tuple[Segment, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedPrompts:
    """The content of a workload.

    Attributes:
        preamble: what all prompts begin with.
        keys: the nodes below it.
        weights: how often each key is used, relative to the others.
        exact: whether each is used exactly so often, or so often on average.
        leaves: draws so many leaves for the key with this index.
    """

    preamble: tuple[Segment, ...]
    keys: Sequence[Segment]
    weights: Floats
    exact: bool
    leaves: Callable[[int, int], list[Leaf]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A workload's own figures, from which its size follows.

    Attributes:
        rate: requests per second and worker.
        keys: per worker.
        requests_per_key: on average.
    """

    rate: float
    keys: int
    requests_per_key: float

    def num_keys(self, options: WorkloadOptions) -> int:
        """As asked for, or as many as so many requests have, or as so many workers are given."""
        if options.prefixes is not None:
            return options.prefixes
        if options.requests is not None:
            return max(1, round(options.requests / self.requests_per_key))
        return self.keys * options.workers

    def num_requests(self, options: WorkloadOptions) -> int:
        """As asked for, or as many as the keys get on average."""
        return options.requests or max(1, round(self.num_keys(options) * self.requests_per_key))

    def requests_per_second(self, options: WorkloadOptions) -> float:
        """As asked for, or what suits so many workers."""
        return options.rate or self.rate * options.workers

    def arrivals(self, options: WorkloadOptions, streams: Streams, *, part: int = 0) -> Floats:
        """Times of all requests."""
        rate = self.requests_per_second(options)
        size = self.num_requests(options)
        return arrival_times(size, rate, options, streams.arrivals, part=part)


def keyed_drafts(
    prompts: KeyedPrompts,
    times: Floats,
    options: WorkloadOptions,
    streams: Streams,
    tree: PromptTree,
) -> list[Draft]:
    """One request for each of `times`."""
    keys = chosen_keys(prompts.weights, times, options, streams.popularity, exact=prompts.exact)
    nodes = [prompts.keys[key] for key in keys]
    if "singles" in options.variants:
        nodes = _with_singles(nodes, prompts.keys, streams, tree)
    leaves = _leaves_in_order(prompts, keys)
    return [
        Draft(
            at=float(at),
            segments=(*prompts.preamble, node, *leaf.segments),
            output_tokens=leaf.output_tokens,
        )
        for at, node, leaf in zip(times, nodes, leaves, strict=True)
    ]


def _leaves_in_order(prompts: KeyedPrompts, keys: Keys) -> list[Leaf]:
    """A leaf for each request. Key by key, so that they do not depend on when each comes."""
    counts = np.bincount(keys, minlength=len(prompts.keys))
    waiting = [iter(prompts.leaves(key, int(count))) for key, count in enumerate(counts)]
    return [next(waiting[key]) for key in keys]


def _with_singles(
    nodes: list[Segment], keys: Sequence[Segment], streams: Streams, tree: PromptTree
) -> list[Segment]:
    """A share of the nodes replaced by new ones of usual lengths."""
    is_single = streams.popularity.random(len(nodes)) < SINGLES_SHARE
    lengths = streams.tree.choice([key.length for key in keys], len(nodes))
    return [
        tree.node(int(length)) if single else node
        for node, single, length in zip(nodes, is_single, lengths, strict=True)
    ]
