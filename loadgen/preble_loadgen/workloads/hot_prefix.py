"""One prefix that every request has, more of them in flight than one worker should carry. Pure.

A router that follows the longest match sends all of it to one worker.
"""

from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.in_flight import in_flight_drafts, num_in_flight
from preble_loadgen.workloads.keyed import Leaf
from preble_loadgen.workloads.options import Streams, WorkloadOptions
from preble_loadgen.workloads.prompt_tree import PromptTree, private
from preble_loadgen.workloads.workload import Workload

REQUESTS_PER_WORKER = 250
PREFIX_TOKENS = 4096
QUESTION_TOKENS = (32, 192)
OUTPUT_TOKENS = (32, 96)


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    prefix = PromptTree().node(PREFIX_TOKENS)
    rng = streams.lengths
    prompts = [
        Leaf(
            (prefix, private(int(rng.integers(*QUESTION_TOKENS, endpoint=True)))),
            int(rng.integers(*OUTPUT_TOKENS, endpoint=True)),
        )
        for _ in range(options.requests or REQUESTS_PER_WORKER * options.workers)
    ]
    return in_flight_drafts(prompts, num_in_flight(options))


WORKLOAD = Workload(
    summary="One hot prefix of 4,096 tokens, 8 requests per worker in flight.",
    variants=frozenset(),
    drafts=_drafts,
)
