"""From what happened to each request to figures. Pure: replay and simulation share it.

Times are in seconds on one clock that begins with the run. `FORMULAS` says how each figure comes
about; the printed table repeats it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from preble_router.lengths.accuracy import Accuracy, accuracy_of

FORMULAS = {
    "ttft": "first token received - request sent",
    "gap": "between one piece of an answer and the next, all answers together",
    "tpot": "(last token - first token) / (output tokens - 1), per answer of 2 tokens or more",
    "e2e": "answer complete - request sent",
    "lateness": "request sent - its scheduled time: the generator's own delay",
    "duration": "first request sent to last answer ended",
    "throughput": "requests, prompt or output tokens of the complete answers / duration",
    "cached": "cached prompt tokens / prompt tokens of the complete answers",
    "predicted": "the same with the tokens the router expected to be cached",
    "prediction error": "(sum of predicted - sum of actual cached tokens) / sum of actual",
    "lengths": "mean of |predicted - actual output tokens|; Spearman's rank correlation of the two",
    "imbalance": "largest / mean of the workers' computed tokens (prompt - cached + output)",
    "percentiles": "linear interpolation between the two nearest samples",
}
LATENESS_P99_MAX = 0.050
"""Seconds. A generator later than this measures itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What happened to one request.

    Attributes:
        scheduled_at, sent_at: when it was due, and when it left.
        first_at, last_at: when its first and last token arrived; None if none did.
        ended_at: when its answer was complete, or had failed.
        gaps: seconds between successive pieces of the answer, in order.
        expected_output_tokens: output asked for.
        prompt_tokens, output_tokens: as the cluster counted them; of a failed request, as known.
        cached_tokens: prompt tokens from the worker's cache.
        predicted_cached_tokens: what the router expected; None where the answer does not tell.
        predicted_output_tokens: the same of the answer's length.
        worker_id: "" where the answer does not tell.
        finish_reason: "" of a failed request.
        error: short reason of a failure, the same for equal failures; "" of a complete answer.
        message: the failure in words.
    """

    index: int
    scheduled_at: float
    sent_at: float
    ended_at: float
    first_at: float | None = None
    last_at: float | None = None
    gaps: Sequence[float] = ()
    prompt_tokens: int = 0
    expected_output_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    predicted_cached_tokens: int | None = None
    predicted_output_tokens: int | None = field(default=None, repr=False)
    worker_id: str = ""
    session: str = ""
    namespace: str = ""
    finish_reason: str = ""
    error: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Of a sample, in its unit; all zero when it is empty."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, sample: Iterable[float]) -> "Distribution":
        """Of the values of `sample`, in any order."""
        values = np.fromiter(sample, dtype=np.float64)
        if not values.size:
            return cls()
        p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
        return cls(
            count=values.size,
            mean=float(values.mean()),
            p50=p50,
            p90=p90,
            p99=p99,
            max=float(values.max()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShare:
    """What one worker contributed to the complete answers."""

    worker_id: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the model."""
        return self.prompt_tokens - self.cached_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run in figures; `FORMULAS` explains them. Seconds, tokens, and per second.

    Attributes:
        num_planned: requests that were to be sent; more than were sent when a run is broken off.
        failures: number of failed requests by reason, most frequent first.
        num_short: complete answers whose length is not the one asked for.
        predicted_cached_tokens: None when no answer tells.
        prediction_error: None when it is undefined.
        lengths: how good the predicted output lengths are, of the answers that tell them.
        workers: by id.
    """

    num_planned: int
    num_sent: int
    num_complete: int
    num_failed: int
    failures: dict[str, int]
    num_short: int
    duration_seconds: float
    requests_per_second: float
    prompt_tokens_per_second: float
    output_tokens_per_second: float
    ttft: Distribution
    gap: Distribution
    tpot: Distribution
    e2e: Distribution
    lateness: Distribution
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    predicted_cached_tokens: int | None
    cached_share: float
    predicted_share: float | None
    prediction_error: float | None
    lengths: Accuracy
    workers: tuple[WorkerShare, ...]
    imbalance: float

    @property
    def is_late(self) -> bool:
        """Whether the generator itself was too slow for its latencies to be trusted."""
        return self.lateness.p99 > LATENESS_P99_MAX


def summarize(records: Sequence[RequestRecord], *, num_planned: int | None = None) -> Report:
    """The figures of a run.

    Args:
        records: of the requests that were sent and have ended, in any order.
        num_planned: as `Report` explains; the number of records unless given.
    """
    complete = [record for record in records if not record.error]
    failures = Counter(record.error for record in records if record.error)
    duration = _duration(records)
    prompt, output, cached = (
        _total(complete, lambda r: r.prompt_tokens),
        _total(complete, lambda r: r.output_tokens),
        _total(complete, lambda r: r.cached_tokens),
    )
    predicted = _predicted(complete)
    workers = _workers(complete)
    return Report(
        num_planned=len(records) if num_planned is None else num_planned,
        num_sent=len(records),
        num_complete=len(complete),
        num_failed=len(records) - len(complete),
        failures=dict(failures.most_common()),
        num_short=sum(r.output_tokens != r.expected_output_tokens for r in complete),
        duration_seconds=duration,
        requests_per_second=_ratio(len(complete), duration),
        prompt_tokens_per_second=_ratio(prompt, duration),
        output_tokens_per_second=_ratio(output, duration),
        ttft=Distribution.of(r.first_at - r.sent_at for r in complete if r.first_at is not None),
        gap=Distribution.of(gap for r in complete for gap in r.gaps),
        tpot=Distribution.of(tpot for r in complete if (tpot := _tpot(r)) is not None),
        e2e=Distribution.of(r.ended_at - r.sent_at for r in complete),
        lateness=Distribution.of(r.sent_at - r.scheduled_at for r in records),
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=cached,
        predicted_cached_tokens=predicted,
        cached_share=_ratio(cached, prompt),
        predicted_share=None if predicted is None else _ratio(predicted, prompt),
        prediction_error=(predicted - cached) / cached
        if predicted is not None and cached
        else None,
        lengths=_lengths(complete),
        workers=workers,
        imbalance=_imbalance([worker.computed_tokens for worker in workers]),
    )


def _duration(records: Sequence[RequestRecord]) -> float:
    if not records:
        return 0.0
    return max(r.ended_at for r in records) - min(r.sent_at for r in records)


def _total(records: Iterable[RequestRecord], of: Callable[[RequestRecord], int]) -> int:
    return sum(of(record) for record in records)


def _predicted(records: Iterable[RequestRecord]) -> int | None:
    known = [r.predicted_cached_tokens for r in records if r.predicted_cached_tokens is not None]
    return sum(known) if known else None


def _lengths(records: Iterable[RequestRecord]) -> Accuracy:
    known = [r for r in records if r.predicted_output_tokens is not None]
    predicted = [r.predicted_output_tokens or 0 for r in known]
    return accuracy_of(predicted, [r.output_tokens for r in known])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _tpot(record: RequestRecord) -> float | None:
    if record.output_tokens < 2 or record.first_at is None or record.last_at is None:
        return None
    return (record.last_at - record.first_at) / (record.output_tokens - 1)


def _workers(records: Iterable[RequestRecord]) -> tuple[WorkerShare, ...]:
    """Sums per worker, of the answers that name theirs."""
    of_worker = defaultdict(list)
    for record in records:
        if record.worker_id:
            of_worker[record.worker_id].append(record)
    return tuple(
        WorkerShare(
            worker_id=worker_id,
            requests=len(own),
            prompt_tokens=_total(own, lambda r: r.prompt_tokens),
            cached_tokens=_total(own, lambda r: r.cached_tokens),
            output_tokens=_total(own, lambda r: r.output_tokens),
        )
        for worker_id, own in sorted(of_worker.items())
    )


def _imbalance(work: Sequence[int]) -> float:
    return _ratio(max(work, default=0) * len(work), sum(work))
