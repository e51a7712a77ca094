"""Two workloads on one cluster, each with its own arrivals: short prompts beside long ones. Pure.

Arrivals are recorded ones, rescaled to the rate: the first trace given for the first workload, the
second, or the first again from its middle, for the second. The published study used Azure's code
and conversation traces, from record 200 on, with times x 0.7 on two GPUs: so does the variant
as-sent, unless a rate is asked for. The variant bursty needs no trace.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from preble.errors import ConfigError
from preble_loadgen.workloads.arrival_times import slowed
from preble_loadgen.workloads.distributions import Floats
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.keyed import (
    POPULARITY_VARIANTS,
    KeyedPrompts,
    Scale,
    keyed_drafts,
)
from preble_loadgen.workloads.long_documents import SCALE as DOCUMENT_SCALE
from preble_loadgen.workloads.long_documents import document_prompts
from preble_loadgen.workloads.options import Streams, WorkloadOptions
from preble_loadgen.workloads.programming import SCALE as PROBLEM_SCALE
from preble_loadgen.workloads.programming import problem_prompts
from preble_loadgen.workloads.prompt_tree import PromptTree
from preble_loadgen.workloads.tool_use import SCALE as TOOL_SCALE
from preble_loadgen.workloads.tool_use import tool_prompts
from preble_loadgen.workloads.video_qa import SCALE as VIDEO_SCALE
from preble_loadgen.workloads.video_qa import video_prompts
from preble_loadgen.workloads.workload import Workload

FIRST_SHARE = 0.8
"""Of the requests: 3,600 of 4,500 in the published study."""
REQUESTS_PER_WORKER = 2250
RATE_PER_WORKER = 3.0
SENT_FROM_RECORD = 200
SENT_TIME_FACTOR = 0.7
SENT_WORKERS = 2
"""For which that factor is; more of them get proportionally more."""


@dataclass(frozen=True, slots=True)
class _Part:
    scale: Scale
    prompts: Callable[[WorkloadOptions, Streams, PromptTree], KeyedPrompts]


TOOLS = _Part(TOOL_SCALE, tool_prompts)
VIDEOS = _Part(VIDEO_SCALE, video_prompts)
PROBLEMS = _Part(PROBLEM_SCALE, problem_prompts)
DOCUMENTS = _Part(DOCUMENT_SCALE, document_prompts)


def _drafts(first: _Part, second: _Part, options: WorkloadOptions, streams: Streams) -> list[Draft]:
    tree = PromptTree()
    options = replace(options, arrivals=_one_for_each(options.arrivals))
    requests = options.requests or REQUESTS_PER_WORKER * options.workers
    rate = options.rate or RATE_PER_WORKER * options.workers
    num_first = round(requests * FIRST_SHARE)
    drafts: list[Draft] = []
    for number, (part, size) in enumerate(((first, num_first), (second, requests - num_first))):
        if not size:
            continue
        sized = replace(options, requests=size, rate=rate * size / requests)
        prompts = part.prompts(sized, streams, tree)
        times = _times(part, number, options, sized, streams)
        drafts += keyed_drafts(prompts, times, sized, streams, tree)
    return drafts


def _times(
    part: _Part, number: int, options: WorkloadOptions, sized: WorkloadOptions, streams: Streams
) -> Floats:
    """Arrivals of one part: of so many requests, at the rate or the pace asked for."""
    if "as-sent" not in options.variants or options.rate is not None or not options.arrivals:
        return part.scale.arrivals(sized, streams, part=number)
    recorded = options.arrivals[min(number, len(options.arrivals) - 1)][SENT_FROM_RECORD:]
    if len(recorded) < 2:
        raise ConfigError(
            f"--variant as-sent begins at record {SENT_FROM_RECORD} of each trace of "
            "--arrivals-from; the one given is shorter"
        )
    factor = SENT_TIME_FACTOR * SENT_WORKERS / options.workers
    return slowed(part.scale.num_requests(sized), recorded, factor)


def _one_for_each(arrivals: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    if len(arrivals) != 1:
        return arrivals
    times = arrivals[0]
    return times, times[len(times) // 2 :]


MIXED = Workload(
    summary="Tool use (4 of 5 requests) and video questions, with recorded arrivals.",
    variants=POPULARITY_VARIANTS | {"as-sent"},
    drafts=lambda options, streams: _drafts(TOOLS, VIDEOS, options, streams),
    needs_arrivals=True,
)
MIXED_LONG = Workload(
    summary="Programming (4 of 5 requests) and long documents, with recorded arrivals.",
    variants=POPULARITY_VARIANTS | {"as-sent"},
    drafts=lambda options, streams: _drafts(PROBLEMS, DOCUMENTS, options, streams),
    needs_arrivals=True,
)
