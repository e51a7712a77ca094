"""A system prompt that all share, before prompts that share nothing else. Pure.

The match is the same on every worker that has served anything, so it must not decide.
"""

from preble_loadgen.workloads.distributions import clipped, log_normal
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.in_flight import in_flight_drafts, num_in_flight
from preble_loadgen.workloads.keyed import Leaf
from preble_loadgen.workloads.options import Streams, WorkloadOptions
from preble_loadgen.workloads.prompt_tree import PromptTree, private
from preble_loadgen.workloads.workload import Workload

REQUESTS_PER_WORKER = 250
SYSTEM_TOKENS = 1024


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    system = PromptTree().node(SYSTEM_TOKENS)
    rng = streams.lengths
    prompts = [
        Leaf(
            (system, private(clipped(log_normal(rng, 600, 500), 16, 6000))),
            int(clipped(log_normal(rng, 100, 120), 2, 1000)),
        )
        for _ in range(options.requests or REQUESTS_PER_WORKER * options.workers)
    ]
    return in_flight_drafts(prompts, num_in_flight(options))


WORKLOAD = Workload(
    summary="A system prompt of 1,024 tokens shared by all, 8 requests per worker in flight.",
    variants=frozenset(),
    drafts=_drafts,
)
