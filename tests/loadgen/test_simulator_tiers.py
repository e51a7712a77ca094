"""Tiers of the cache in the simulator: skipping ahead stays exact, and what crossed is told."""

import random

import pytest

from preble.cost_library import kv_capacity_tokens, load_cost_model
from preble_loadgen.simulator import SimulationOptions, SimulationResult, simulate
from preble_loadgen.trace_request import Segment, TraceRequest
from preble_worker.estimated_tiers import named_tiers

MODEL = "opt-13b-a100-40gb"


def chats(count: int, *, rate: float) -> list[TraceRequest]:
    """Prompts and answers of very different lengths, none shared."""
    rng = random.Random(3)
    requests, at = [], 0.0
    for index in range(count):
        at += rng.expovariate(rate)
        prompt = min(int(rng.lognormvariate(5.2, 1.1)) + 8, 1500)
        output = min(int(rng.lognormvariate(5.0, 0.9)) + 4, 1000)
        requests.append(
            TraceRequest(
                index=index,
                line=index + 1,
                at=at,
                output_tokens=output,
                segments=(Segment(7919 * index + 13, prompt),),
            )
        )
    return requests


def run(policy: str, tiers: tuple[str, ...], **options: object) -> SimulationResult:
    kv_tokens = kv_capacity_tokens(MODEL)
    return simulate(
        chats(120, rate=8.0),
        SimulationOptions(
            cost=load_cost_model(MODEL),
            num_workers=1,
            policy="round_robin",
            local_policy=policy,
            kv_cache_tokens=kv_tokens,
            context_tokens=4096,
            max_sequences=256,
            tiers=named_tiers(MODEL, tiers, kv_tokens=kv_tokens, page_tokens=16),
            **options,  # type: ignore[arg-type]
        ),
    )


@pytest.mark.parametrize(
    ("policy", "tiers"),
    [
        ("fcfs", ("host",)),
        ("alise", ("host", "int8")),
        ("adaptive", ("host", "hidden")),
        ("adaptive", ("int8-resident",)),
    ],
)
def test_skipping_ahead_changes_no_time(policy: str, tiers: tuple[str, ...]) -> None:
    ends = []
    for report_seconds in (0.0, 0.2):
        result = run(policy, tiers, report_seconds=report_seconds, check_every=10.0)
        assert result.workers[0].swaps + result.workers[0].int8_starts > 0
        records = sorted(result.records, key=lambda record: record.index)
        ends.append([(record.first_at, record.ended_at) for record in records])
    assert ends[0] == [pytest.approx(times) for times in ends[1]]


def documents(count: int) -> list[TraceRequest]:
    """Questions to one of twelve documents, which together are more than a device holds."""
    rng = random.Random(5)
    return [
        TraceRequest(
            index=index,
            line=index + 1,
            at=0.4 * index,
            output_tokens=8,
            segments=(Segment(rng.randrange(12), 3200), Segment(1000 + index, 60)),
        )
        for index in range(count)
    ]


def test_evicted_prefixes_come_back_from_the_host_and_the_router_knows() -> None:
    ttfts, cached = [], []
    every: list[tuple[str, ...]] = [(), ("host",)]
    for tiers in every:
        kv_tokens = 16_000
        options = SimulationOptions(
            cost=load_cost_model("llama-3-8b-h100"),
            num_workers=2,
            kv_cache_tokens=kv_tokens,
            tiers=named_tiers("llama-3-8b-h100", tiers, kv_tokens=kv_tokens, page_tokens=16),
            check_every=5.0,
        )
        result = simulate(documents(120), options)
        records = result.records
        found = sum(worker.cached_tokens for worker in result.workers)
        assert sum(record.predicted_cached_tokens for record in records) == found
        assert sum(worker.preemptions for worker in result.workers) == 0
        ttfts.append(sum(record.first_at - record.sent_at for record in records))
        cached.append(found / sum(worker.prompt_tokens for worker in result.workers))
    assert cached[1] > cached[0] + 0.1
    assert ttfts[1] < 0.7 * ttfts[0]


def test_what_crossed_is_told_in_bytes() -> None:
    worker = run("alise", ("host", "int8")).workers[0]
    page_bytes = 16 * 2 * 40 * 5120  # Keys and values of 16 tokens, a byte each.
    assert worker.swaps > 0 and worker.offloaded_bytes > 0
    assert worker.offloaded_bytes % page_bytes == worker.uploaded_bytes % page_bytes == 0
    without = run("alise", ()).workers[0]
    assert (without.swaps, without.offloaded_bytes, without.uploaded_bytes) == (0, 0, 0)
    assert without.preemptions > 0
