"""Objectives met and normalised latency, computed once more by hand."""

from typing import Any

import pytest

from preble_loadgen.objectives import Service, service_of
from preble_loadgen.report import RequestRecord
from preble_loadgen.trace_request import Segment, TraceRequest


def record(index: int, **values: Any) -> RequestRecord:
    default: dict[str, Any] = {
        "index": index,
        "scheduled_at": 1.0,
        "sent_at": 1.0,
        "first_at": 1.5,
        "last_at": 3.0,
        "ended_at": 3.0,
        "gaps": (0.5, 1.0),
        "prompt_tokens": 100,
        "expected_output_tokens": 4,
        "output_tokens": 4,
        "cached_tokens": 0,
        "predicted_cached_tokens": 0,
        "worker_id": "a",
        "finish_reason": "length",
    }
    return RequestRecord(**(default | values))


def request(index: int, **values: Any) -> TraceRequest:
    return TraceRequest(
        index=index, line=1, at=0.0, output_tokens=4, segments=(Segment(1, 100),), **values
    )


def service(records: list[RequestRecord], requests: list[TraceRequest]) -> Service:
    return service_of(records, requests, ttft_slo_seconds=0.6, tbt_slo_seconds=1.0)


def test_late_tokens_and_failures_miss_their_objectives() -> None:
    records = [
        record(0),
        record(1, first_at=1.7),
        record(2, gaps=(0.5, 1.1)),
        record(3, error="timeout", first_at=None),
        record(4, gaps=()),
    ]
    requests = [request(index) for index in range(5)]
    assert service(records, requests).within == pytest.approx(2 / 5)


def test_what_a_request_states_counts_instead() -> None:
    requests = [request(0, ttft_slo_seconds=0.4), request(1, tbt_slo_seconds=2.0)]
    records = [record(0), record(1, gaps=(1.5,))]
    assert service(records, requests).within == pytest.approx(1 / 2)


def test_latency_is_per_output_token() -> None:
    records = [record(0), record(1, output_tokens=1, gaps=()), record(2, error="timeout")]
    requests = [request(index) for index in range(3)]
    assert service(records, requests).token_seconds == pytest.approx((2.0 / 4 + 2.0) / 2)
    assert service([], []).within == 0.0
