"""Prompts that share nothing, for which affinity can only cost. Pure.

Lengths are those of a recorded trace where one is given, in its order, from the first again after
the last; else log-normal, near Azure's 2023 code trace: prompt 2,048 (1,900), output 28 (55).
"""

from itertools import cycle, islice

from preble_loadgen.workloads.arrival_times import arrival_times
from preble_loadgen.workloads.distributions import clipped, log_normal
from preble_loadgen.workloads.draft import Draft
from preble_loadgen.workloads.options import Rng, Streams, WorkloadOptions
from preble_loadgen.workloads.prompt_tree import private, whole
from preble_loadgen.workloads.workload import Workload

REQUESTS_PER_WORKER = 2000
RATE_PER_WORKER = 3.0


def _drafts(options: WorkloadOptions, streams: Streams) -> list[Draft]:
    size = options.requests or len(options.lengths) or REQUESTS_PER_WORKER * options.workers
    rate = options.rate or RATE_PER_WORKER * options.workers
    times = arrival_times(size, rate, options, streams.arrivals)
    recorded = islice(cycle(options.lengths), size)
    lengths = recorded if options.lengths else (_lengths(streams.lengths) for _ in range(size))
    return [
        Draft(at=float(at), segments=(private(prompt),), output_tokens=output)
        for at, (prompt, output) in zip(times, lengths, strict=True)
    ]


def _lengths(rng: Rng) -> tuple[int, int]:
    prompt = clipped(log_normal(rng, 2048, 1900), 16, 16_000)
    return whole(prompt), whole(clipped(log_normal(rng, 28, 55), 1, 2000))


WORKLOAD = Workload(
    summary="Prompts that share nothing; lengths of a recorded trace, or log-normal.",
    variants=frozenset({"bursty"}),
    drafts=_drafts,
    takes_lengths=True,
)
