"""The longest wait of any request under each local policy, in an overload, and its bound.

No policy can promise a wait in seconds when more comes than can be served: even under `fcfs`
requests then wait the longer, the longer it lasts. What a policy can bound is for how long one may
be overtaken. From then on only what came before it is served before it, which `fcfs` has to serve
as well. So the bounds are made of the longest wait under `fcfs`, of the same load.
"""

import random
from dataclasses import dataclass

from preble.cost import CostModel
from preble_loadgen.simulator import SimulationOptions, simulate
from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest
from preble_worker.policies import POLICY_NAMES, PolicyOptions
from preble_worker.policies.adaptive import PIN_AFTER_SLOS
from preble_worker.policies.alise import NUM_LEVELS, PROMOTION_STRETCH
from preble_worker.policies.edf import DEMOTED_SHARE
from preble_worker.policies.mlfq import LOST_SHARE
from preble_worker.policies.srpt import STRETCH

COST = CostModel(
    name="starvation",
    fixed=0.02,
    per_prefill_token=1e-4,
    per_attention=0.0,
    per_decode=1e-3,
    per_context_token=0.0,
)
RATE = 1.3
"""Requests per second, more than two places can serve."""
MAX_PROMPT, MAX_OUTPUT = 1000, 200
SHARED_TOKENS = 512
REWORK = 0.1
"""Of the longest wait under `fcfs`: what preemption makes others compute again, and steps that are
not as full."""

ESCAPE_SECONDS = PolicyOptions().age_escape_seconds
SLO_SECONDS = PolicyOptions().ttft_slo_seconds
LONGEST_ALONE = COST.prefill_seconds(float(MAX_PROMPT + SHARED_TOKENS), 0.0) + (
    MAX_OUTPUT * COST.decode_seconds(0.0)
)
"""Seconds of the longest request, as policies reckon."""


def overload(seconds: float, *, seed: int = 0) -> list[TraceRequest]:
    """Short and long requests, half of them behind one of three shared prompts."""
    rng = random.Random(seed)
    requests: list[TraceRequest] = []
    at = 0.0
    while at < seconds:
        own = Segment(
            PRIVATE_ID + len(requests), min(int(rng.lognormvariate(5, 1)) + 8, MAX_PROMPT)
        )
        shared = (Segment(rng.randrange(3), SHARED_TOKENS),) if rng.random() < 0.5 else ()
        output = min(int(rng.lognormvariate(4.3, 1)) + 2, MAX_OUTPUT)
        number = len(requests)
        requests.append(
            TraceRequest(
                index=number,
                line=number + 1,
                at=at,
                segments=(*shared, own),
                output_tokens=output,
            )
        )
        at += rng.expovariate(RATE)
    return requests


@dataclass(frozen=True, slots=True)
class LongestWait:
    """Seconds for a first token, and between two tokens of one request."""

    first: float
    gap: float
    num_failed: int

    @property
    def seconds(self) -> float:
        return max(self.first, self.gap)


def longest_wait(policy: str, load: list[TraceRequest]) -> LongestWait:
    """On one worker with two places, until the last request is answered."""
    options = SimulationOptions(
        cost=COST,
        num_workers=1,
        policy="round_robin",
        local_policy=policy,
        length_predictor="oracle",
        kv_cache_tokens=8000,
        context_tokens=4000,
        max_sequences=2,
        report_seconds=1.0,
        sample_every=0.0,
    )
    records = simulate(load, options).records
    served = [r for r in records if r.first_at is not None]
    return LongestWait(
        first=max(r.first_at - r.sent_at for r in served if r.first_at is not None),
        gap=max(max(r.gaps, default=0.0) for r in served),
        num_failed=sum(bool(r.error) for r in records),
    )


def bounds(fcfs_seconds: float, load_seconds: float) -> dict[str, float]:
    """Longest wait that each policy promises, where the longest under `fcfs` is `fcfs_seconds`."""
    queue = (1.0 + REWORK) * fcfs_seconds
    lost = (queue + LOST_SHARE * load_seconds) / (1.0 - LOST_SHARE)
    overtaken = {
        "fcfs": queue,
        "lpm": ESCAPE_SECONDS + queue,
        "preble_groups": ESCAPE_SECONDS + queue,
        "mlfq": ESCAPE_SECONDS + lost,
        "srpt": max(ESCAPE_SECONDS, STRETCH * LONGEST_ALONE) + queue,
        "alise": (NUM_LEVELS - 1) * PROMOTION_STRETCH * LONGEST_ALONE + queue,
        "adaptive": PIN_AFTER_SLOS * SLO_SECONDS + queue,
        "dlpm": ESCAPE_SECONDS + queue,
        "edf": SLO_SECONDS + queue / DEMOTED_SHARE,
    }
    assert set(overtaken) == set(POLICY_NAMES)
    return overtaken
