"""More than a simulated cluster can do, and what it makes of it. For tests and the benchmark."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import inf

from preble.cost import CostModel
from preble_loadgen.goodput import Goodput, goodput_of
from preble_loadgen.simulator import SimulationOptions, SimulationResult, simulate
from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest

STEPS_OF_20_MS = CostModel(
    name="steps of 20 ms",
    fixed=0.0195,
    per_prefill_token=2e-5,
    per_attention=0.0,
    per_decode=3e-5,
    per_context_token=0.0,
)
TIMEOUT_SECONDS = 3.0


def cluster(**fields: object) -> SimulationOptions:
    """Small workers with steps of 20 ms."""
    defaults: dict[str, object] = {
        "cost": STEPS_OF_20_MS,
        "kv_cache_tokens": 40_000,
        "max_batch_tokens": 512,
        "max_sequences": 16,
        "context_tokens": 4096,
        "vocab_size": 5000,
        "sample_every": 0.0,
    }
    return SimulationOptions(**{**defaults, **fields})  # type: ignore[arg-type]


def arrivals(*parts: tuple[float, float], seed: int = 0) -> list[TraceRequest]:
    """Poisson arrivals: of each part, for so many seconds so many requests per second."""
    rng = random.Random(seed)
    requests: list[TraceRequest] = []
    begin = 0.0
    for seconds, rate in parts:
        at = begin + rng.expovariate(rate)
        begin += seconds
        while at < begin:
            shared = Segment(rng.randrange(8), 320)
            own = Segment(PRIVATE_ID + len(requests), rng.randrange(30, 300))
            requests.append(
                TraceRequest(
                    index=len(requests),
                    line=len(requests) + 1,
                    at=at,
                    segments=(shared, own),
                    output_tokens=rng.randrange(10, 40),
                )
            )
            at += rng.expovariate(rate)
    return requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a cluster does when it is never short of work, per second."""

    requests: float
    tokens: float


def capacity(options: SimulationOptions) -> Capacity:
    """From the middle of a backlog's ends, where every worker is full."""
    backlog = arrivals((1.0, 240.0 * options.num_workers))
    ended = sorted(simulate(backlog, options).records, key=lambda record: record.ended_at)
    middle = ended[len(ended) // 10 : len(ended) * 8 // 10]
    seconds = middle[-1].ended_at - middle[0].ended_at
    tokens = sum(record.output_tokens for record in middle)
    return Capacity(requests=len(middle) / seconds, tokens=tokens / seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """Five times what a cluster can do, and then four fifths of it.

    Attributes:
        during: of the requests that ended while it was too much: what waited then does not count.
        after: shares of good ones, of those that came in each half second since.
    """

    capacity: Capacity
    during: Goodput
    after: Sequence[float]
    result: SimulationResult

    @property
    def requests_share(self) -> float:
        """Good requests over capacity. Above 1: the cheap ones were let in."""
        return self.during.requests_per_second / self.capacity.requests

    @property
    def tokens_share(self) -> float:
        """Their output over that at capacity."""
        return self.during.tokens_per_second / self.capacity.tokens

    @property
    def recovery_seconds(self) -> float:
        """From the end of the overload until 95 % are good for good."""
        bad = [index for index, share in enumerate(self.after) if share < 0.95]
        return 0.5 * (bad[-1] + 1) if bad else 0.0


def overload(
    *, seconds: float, after_seconds: float = 4.0, has_deadlines: bool = True, **fields: object
) -> Overload:
    """Without deadlines all are let in, and judged by the same time."""
    can = capacity(cluster(**fields))
    requests = arrivals((seconds, 5.0 * can.requests), (after_seconds, 0.8 * can.requests))
    timeout = TIMEOUT_SECONDS if has_deadlines else 0.0
    result = simulate(requests, cluster(timeout_seconds=timeout, **fields))

    def good(begin: float, end: float, *, ended_by: float = inf) -> Goodput:
        records = [record for record in result.records if record.ended_at < ended_by]
        return goodput_of(records, timeout_seconds=TIMEOUT_SECONDS, begin=begin, end=end)

    halves = [seconds + 0.5 * index for index in range(int(2.0 * after_seconds))]
    return Overload(
        capacity=can,
        during=good(0.0, seconds, ended_by=seconds),
        after=[good(at, at + 0.5).good_share for at in halves],
        result=result,
    )


FLOOD_AT = 1.0
"""In seconds, when the greedy tenant comes to the steady one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """A tenant that asks for a fifth of a cluster, alone and when one comes that asks for ten
    times as much. Figures are from that moment on.

    Attributes:
        alone_p99, beside_p99: seconds to its first tokens.
        tokens_per_second: prompt and output of both, while both ask.
        preemptions: of all workers together.
    """

    alone_p99: float
    beside_p99: float
    tokens_per_second: float
    preemptions: int

    @property
    def slower(self) -> float:
        """By how much the steady one's first tokens are."""
        return self.beside_p99 / self.alone_p99


def sharing(*, seconds: float, rate: float, seed: int = 0, **fields: object) -> Sharing:
    """`rate`: requests per second of the steady tenant."""
    steady = tenant_arrivals("steady", 0.0, seconds, rate, seed=seed)
    greedy = tenant_arrivals("greedy", FLOOD_AT, seconds, 10.0 * rate, seed=seed + 1)
    alone_p99, _, _ = _share(steady, seconds, fields)
    beside_p99, tokens_per_second, preemptions = _share(steady + greedy, seconds, fields)
    return Sharing(
        alone_p99=alone_p99,
        beside_p99=beside_p99,
        tokens_per_second=tokens_per_second,
        preemptions=preemptions,
    )


def both(
    *arrivals: Sequence[TraceRequest], **fields: object
) -> tuple[list[TraceRequest], SimulationResult]:
    """All of them in the order of their times, and what comes of them, on larger workers."""
    ordered = sorted(chain(*arrivals), key=lambda request: request.at)
    requests = [replace(r, index=index, line=index + 1) for index, r in enumerate(ordered)]
    options = cluster(max_batch_tokens=2048, kv_cache_tokens=80_000, **fields)
    return requests, simulate(requests, options)


def _share(
    arrivals: Sequence[TraceRequest], seconds: float, fields: dict[str, object]
) -> tuple[float, float, int]:
    requests, result = both(arrivals, **fields)
    records = result.records
    waits = sorted(
        record.first_at - record.sent_at
        for record in records
        if record.first_at is not None
        and requests[record.index].tenant == "steady"
        and record.sent_at >= FLOOD_AT
    )
    ended = [record for record in records if FLOOD_AT <= record.ended_at < seconds]
    tokens = sum(record.prompt_tokens + record.output_tokens for record in ended)
    return (
        waits[int(0.99 * len(waits))],
        tokens / (seconds - FLOOD_AT),
        sum(worker.preemptions for worker in result.workers),
    )


def tenant_arrivals(
    tenant: str, begin: float, end: float, rate: float, *, seed: int
) -> list[TraceRequest]:
    """Poisson arrivals over eight prefixes that only this tenant has."""
    rng = random.Random(seed)
    first = 8 * (sum(tenant.encode()) % 1000)
    requests: list[TraceRequest] = []
    at = begin + rng.expovariate(rate)
    while at < end:
        own = Segment(PRIVATE_ID + 1_000_000 * first + len(requests), rng.randrange(30, 300))
        requests.append(
            TraceRequest(
                index=0,
                line=1,
                at=at,
                segments=(Segment(first + rng.randrange(8), 320), own),
                output_tokens=rng.randrange(10, 40),
                tenant=tenant,
            )
        )
        at += rng.expovariate(rate)
    return requests
