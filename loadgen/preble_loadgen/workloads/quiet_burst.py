"""One request at a time for a while, then many at once, of the same families. Pure.

While it is quiet every worker is idle and ties decide; a router that always breaks them the same
way has taught one worker everything when the burst comes.
"""

from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.families import SHARED_TOKENS, family_prompts, num_families
from preble_loadgen.workloads.in_flight import in_flight_drafts, num_in_flight
from preble_loadgen.workloads.options import Streams, WorkloadOptions
from preble_loadgen.workloads.prompt_tree import PromptTree
from preble_loadgen.workloads.workload import Workload

QUIET_REQUESTS = 192
QUIET_GAP_SECONDS = 5.0
"""Long enough for any answer; `rate` puts another in its place."""
ROUNDS = 8
"""Requests per client of the burst."""


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    families = [tree.node(SHARED_TOKENS) for _ in range(num_families(options))]
    in_flight = num_in_flight(options)
    size = options.requests or QUIET_REQUESTS + ROUNDS * in_flight
    gap = 1 / options.rate if options.rate else QUIET_GAP_SECONDS
    prompts = family_prompts(families, size, streams.popularity)
    quiet, burst = prompts[:QUIET_REQUESTS], prompts[QUIET_REQUESTS:]
    drafts = [
        Draft(at=number * gap, segments=prompt.segments, output_tokens=prompt.output_tokens)
        for number, prompt in enumerate(quiet)
    ]
    return drafts + in_flight_drafts(burst, in_flight, start_at=len(quiet) * gap)


WORKLOAD = Workload(
    summary="192 requests one at a time, then 8 per worker in flight, of the same families.",
    variants=frozenset(),
    drafts=_drafts,
)
