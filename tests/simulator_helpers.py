"""Small clusters and loads for the simulator's tests."""

import random
from collections.abc import Sequence

from preble.cost import CostModel
from preble_loadgen.simulator import SimulationOptions, SimulationResult, parse_fault, simulate
from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest

COST = CostModel(
    name="test",
    fixed=5e-3,
    per_prefill_token=1.5e-4,
    per_attention=1e-9,
    per_decode=1e-4,
    per_context_token=1e-7,
)


def options(*, faults: Sequence[str] = (), **fields: object) -> SimulationOptions:
    """A few small workers, everything checked once a second."""
    defaults: dict[str, object] = {
        "cost": COST,
        "num_workers": 3,
        "kv_cache_tokens": 12_000,
        "max_batch_tokens": 512,
        "max_sequences": 16,
        "context_tokens": 4096,
        "vocab_size": 5000,
        "check_every": 1.0,
        "faults": tuple(map(parse_fault, faults)),
    }
    return SimulationOptions(**{**defaults, **fields})  # type: ignore[arg-type]


def load(num_requests: int = 150, *, rate: float = 15.0, seed: int = 0) -> list[TraceRequest]:
    """Poisson arrivals over a few shared prefixes, each prompt with an end of its own."""
    rng = random.Random(seed)
    requests, at = [], 0.0
    for index in range(num_requests):
        shared = Segment(rng.randrange(8), rng.choice([300, 600]))
        own = Segment(PRIVATE_ID + index, rng.randrange(20, 200))
        requests.append(
            TraceRequest(
                index=index,
                line=index + 1,
                at=at,
                segments=(shared, own),
                output_tokens=rng.randrange(1, 80),
            )
        )
        at += rng.expovariate(rate)
    return requests


def run(requests: Sequence[TraceRequest] | None = None, **fields: object) -> SimulationResult:
    """`simulate` with `load` and `options`; what holds for every run is checked."""
    wanted = load() if requests is None else requests
    result = simulate(wanted, options(**fields))  # type: ignore[arg-type]
    assert sorted(record.index for record in result.records) == [r.index for r in wanted]
    for record in result.records:
        request = wanted[record.index]
        if not record.error:
            assert record.finish_reason == "length"
            assert record.output_tokens == request.output_tokens
        assert len(record.gaps) == max(record.output_tokens - 1, 0)
        assert all(gap >= 0.0 for gap in record.gaps)
        assert (
            record.cached_tokens
            < record.prompt_tokens
            == sum(segment.length for segment in request.segments)
        )
        if record.first_at is not None and record.last_at is not None:
            assert record.sent_at < record.first_at <= record.last_at <= record.ended_at
            assert abs(record.last_at - record.first_at - sum(record.gaps)) < 1e-6
    return result
