"""One cell of the tournament: what is simulated, and the figures that come of it. Pure."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np

from preble_loadgen.report import Distribution, RequestRecord, summarize
from preble_loadgen.simulator import SimulationResult
from preble_loadgen.tournament.worker_figures import WorkerFigures

WARM_UP_SHARE = 0.1
"""The first requests, which find every cache cold, count for hit shares and not for latencies."""

SLO_SHARE = 0.9
CURVE_POINTS = 101
PUBLISHED_ORDER = "preble_groups"
"""Local policy of the workers where routing policies are compared: that of the Preble paper."""
ADDED_LATER = ("tiers", "length_predictor", "length_noise", "cv")
"""Fields of `CellKey` that its first version had not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellKey:
    """What is simulated; equal keys give equal figures.

    Attributes:
        section: the part of the tournament it belongs to.
        workload: name of a workload or of a trace. variant: of the workload, "" for none.
        policy: as `make_policy` takes it.
        rate: requests/s of the whole cluster; 0 where clients keep so many in flight instead.
        load: the rate relative to the workload's nominal one.
        faults: as `parse_fault` takes them.
        tiers: of the workers' caches, as `--kv-tiers` takes them.
        length_predictor, length_noise: as `SimulationOptions` has them; "" for the default.
        cv: coefficient of variation of the gaps between arrivals; 0 for the workload's own.
    """

    section: str
    workload: str
    policy: str
    num_workers: int
    cost_model: str
    rate: float
    load: float
    seed: int
    variant: str = ""
    local_policy: str = PUBLISHED_ORDER
    faults: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    length_predictor: str = ""
    length_noise: float = 0.0
    cv: float = 0.0

    @property
    def file_name(self) -> str:
        """Readable in front, unique at the end. What was added later names a file only where it
        says something, so that files from before keep their names.
        """
        stated = {n: value for n, value in asdict(self).items() if value or n not in ADDED_LATER}
        text = json.dumps(stated, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        words = (self.section, self.workload, self.policy, f"{self.num_workers}w", digest)
        return "-".join(word.replace(":", "_") for word in words) + ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a request must keep to: seconds to its first token, and between two tokens (p99)."""

    ttft: float
    tbt: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of a distribution, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, distribution: Distribution) -> Self:
        return cls(
            mean=distribution.mean,
            p50=distribution.p50,
            p90=distribution.p90,
            p99=distribution.p99,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFigures:
    """What a cell yields. Times in seconds.

    Attributes:
        wall_seconds: what the simulation took.
        ttft, e2e, gap: of the requests after the warm-up; gaps between the pieces of an answer.
        cached_share, predicted_share: of all prompt tokens, as happened and as the router expected.
        busy_imbalance: largest over mean of the workers' busy time.
        largest_share: of the requests, on one worker.
        within_slo: share of the requests after the warm-up, failed ones included, within `slo`.
        ttft_quantiles: 101 values, p0 to p100.
        load_over_time: (second, tokens waiting for prefill on each worker), for some cells.
        oracle_mean_ttft: what the oracle's static model can do, where it was computed.
        worker_requests: how many each worker answered.
        meeting_share: of the requests, those that went where most of their family goes; None where
            prompts come in no families.
    """

    key: CellKey
    num_requests: int
    num_failed: int
    duration_seconds: float
    wall_seconds: float
    digest: str
    ttft: Summary
    e2e: Summary
    gap: Summary
    cached_share: float
    predicted_share: float | None
    busy_imbalance: float
    largest_share: float
    requests_per_second: float
    within_slo: float
    slo: Slo
    ttft_quantiles: tuple[float, ...] = ()
    load_over_time: tuple[tuple[float, tuple[float, ...]], ...] = ()
    oracle_mean_ttft: float | None = None
    worker_requests: tuple[int, ...] = field(default=())
    worker: WorkerFigures | None = None
    meeting_share: float | None = None

    def to_json(self) -> str:
        """One line; `from_json` reads it."""
        return json.dumps(asdict(self), allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """
        Raises:
            ValueError, TypeError, KeyError: it is not what `to_json` wrote.
        """
        fields: dict[str, Any] = json.loads(text)
        key = fields["key"]
        sequences = {name: tuple(key.get(name, ())) for name in ("faults", "tiers")}
        fields["key"] = CellKey(**key | sequences)
        for name in ("ttft", "e2e", "gap"):
            fields[name] = Summary(**fields[name])
        fields["slo"] = Slo(**fields["slo"])
        if worker := fields.get("worker"):
            fields["worker"] = WorkerFigures(**worker)
        fields["load_over_time"] = tuple(
            (at, tuple(loads)) for at, loads in fields["load_over_time"]
        )
        for name in ("ttft_quantiles", "worker_requests"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def figures(
    key: CellKey,
    result: SimulationResult,
    *,
    slo: Slo,
    wall_seconds: float,
    with_load: bool = False,
    families: Sequence[int] = (),
) -> CellFigures:
    """The figures of a finished simulation.

    Args:
        families: that of each request, by index; () where there are none.
        with_load: keep the workers' load over time, which makes the cell's file large.
    """
    records = sorted(result.records, key=lambda record: record.index)
    counted = after_warm_up(records)
    whole, latency = summarize(records), summarize(counted)
    first = [r.first_at - r.sent_at for r in counted if not r.error and r.first_at is not None]
    of_worker = {worker.worker_id: worker.requests for worker in whole.workers}
    answered = tuple(of_worker.get(worker.worker_id, 0) for worker in result.workers)
    return CellFigures(
        key=key,
        num_requests=len(records),
        num_failed=whole.num_failed,
        duration_seconds=result.duration_seconds,
        wall_seconds=wall_seconds,
        digest=result.digest,
        ttft=Summary.of(latency.ttft),
        e2e=Summary.of(latency.e2e),
        gap=Summary.of(latency.gap),
        cached_share=whole.cached_share,
        predicted_share=whole.predicted_share,
        busy_imbalance=result.busy_imbalance,
        largest_share=max(answered) / max(sum(answered), 1),
        requests_per_second=whole.requests_per_second,
        within_slo=sum(_is_within(r, slo) for r in counted) / max(len(counted), 1),
        slo=slo,
        ttft_quantiles=_quantiles(first),
        load_over_time=_load_over_time(result) if with_load else (),
        worker_requests=answered,
        meeting_share=_meeting_share(records, families) if families else None,
    )


def after_warm_up(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Those whose latencies count, by index."""
    ordered = sorted(records, key=lambda record: record.index)
    return ordered[int(WARM_UP_SHARE * len(ordered)) :]


def with_oracle(cell: CellFigures, mean_ttft: float) -> CellFigures:
    """`cell` beside what the oracle found."""
    return replace(cell, oracle_mean_ttft=mean_ttft)


def _meeting_share(records: Sequence[RequestRecord], families: Sequence[int]) -> float:
    places: dict[int, Counter[str]] = defaultdict(Counter)
    for record in records:
        places[families[record.index]][record.worker_id] += 1
    return sum(max(counts.values()) for counts in places.values()) / max(len(records), 1)


def _is_within(record: RequestRecord, slo: Slo) -> bool:
    if record.error or record.first_at is None or record.first_at - record.sent_at > slo.ttft:
        return False
    return not record.gaps or float(np.percentile(record.gaps, 99)) <= slo.tbt


def _quantiles(sample: Sequence[float]) -> tuple[float, ...]:
    if not sample:
        return ()
    return tuple(np.percentile(sample, np.linspace(0.0, 100.0, CURVE_POINTS)).round(6).tolist())


def _load_over_time(result: SimulationResult) -> tuple[tuple[float, tuple[float, ...]], ...]:
    at: dict[float, dict[str, float]] = {}
    for sample in result.samples:
        at.setdefault(sample.at, {})[sample.worker_id] = float(sample.waiting_prefill_tokens)
    ids = [worker.worker_id for worker in result.workers]
    return tuple(
        (round(moment, 3), tuple(loads.get(worker_id, 0.0) for worker_id in ids))
        for moment, loads in sorted(at.items())
    )
