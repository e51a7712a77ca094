"""What requests made of their objectives: how many met them, and how long a token took. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preble_loadgen.report import RequestRecord
from preble_loadgen.trace_request import TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a run's requests got.

    Attributes:
        within: share of the requests, failed ones included, whose first token came within
            `ttft_slo_seconds` and whose 99th percentile of gaps is within `tbt_slo_seconds`, their
            own objectives instead where they state some.
        token_seconds: mean normalised latency: end to end over output tokens, of complete requests.
    """

    ttft_slo_seconds: float
    tbt_slo_seconds: float
    within: float
    token_seconds: float


def service_of(
    records: Sequence[RequestRecord],
    requests: Sequence[TraceRequest],
    *,
    ttft_slo_seconds: float,
    tbt_slo_seconds: float,
) -> Service:
    """The objectives given are those of requests that state none."""
    within = 0
    for record in records:
        request = requests[record.index]
        within += _is_within(
            record,
            ttft=_either(request.ttft_slo_seconds, ttft_slo_seconds),
            tbt=_either(request.tbt_slo_seconds, tbt_slo_seconds),
        )
    each = [(r.ended_at - r.sent_at) / max(r.output_tokens, 1) for r in records if not r.error]
    return Service(
        ttft_slo_seconds=ttft_slo_seconds,
        tbt_slo_seconds=tbt_slo_seconds,
        within=within / max(len(records), 1),
        token_seconds=float(np.mean(each)) if each else 0.0,
    )


def _either(own: float | None, otherwise: float) -> float:
    return otherwise if own is None else own


def _is_within(record: RequestRecord, *, ttft: float, tbt: float) -> bool:
    if record.error or record.first_at is None or record.first_at - record.sent_at > ttft:
        return False
    return not record.gaps or float(np.percentile(record.gaps, 99)) <= tbt
