"""Translation between the messages of `preble.v1.worker` and the values of this package.

Each pair of functions is exact both ways. Receivers validate nothing here: a peer speaks the
protocol or the link is dropped.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from preble.cost import CostModel
from preble.events import (
    CacheEvent,
    CacheEvents,
    CacheSnapshot,
    Evicted,
    SnapshotRequest,
    Stored,
)
from preble.types import (
    FinishReason,
    LoadReport,
    Logprobs,
    RequestOutput,
    SamplingParams,
    WorkerRequest,
    WorkerSpec,
)
from preble.v1 import worker_pb2 as pb
from preble.v1.inference_pb2 import GenerateResponse

SNAPSHOT_PART_BYTES = 4 * 1024 * 1024
"""Payload after which a snapshot continues in another message."""

_COST_FIELDS = (
    "name",
    "fixed",
    "per_prefill_token",
    "per_attention",
    "per_decode",
    "per_context_token",
    "weight_read",
    "per_hidden_token",
    "per_int8_token",
    "per_product",
    "roofline",
    "source",
)
_SPEC_FIELDS = (
    "worker_id",
    "epoch",
    "model",
    "page_tokens",
    "capacity_tokens",
    "max_batch_tokens",
    "max_sequences",
    "context_tokens",
    "vocab_size",
    "host_capacity_tokens",
    "host_token_seconds",
)
_LOAD_FIELDS = tuple(field.name for field in pb.LoadReport.DESCRIPTOR.fields)

_FINISH_TO_WIRE = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: pb.FINISH_REASON_DEADLINE,
    FinishReason.REFUSED: pb.FINISH_REASON_REFUSED,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_FINISH_FROM_WIRE = {wire: reason for reason, wire in _FINISH_TO_WIRE.items()}


def finish_to_wire(reason: FinishReason | None) -> pb.FinishReason.ValueType:
    """The wire's finish reason; None, a request that goes on, is UNSPECIFIED."""
    return pb.FINISH_REASON_UNSPECIFIED if reason is None else _FINISH_TO_WIRE[reason]


def finish_from_wire(reason: pb.FinishReason.ValueType) -> FinishReason | None:
    """Inverse of `finish_to_wire`; a reason this version does not know counts as an error."""
    if reason == pb.FINISH_REASON_UNSPECIFIED:
        return None
    return _FINISH_FROM_WIRE.get(reason, FinishReason.ERROR)


def sampling_to_wire(sampling: SamplingParams) -> pb.SamplingParams:
    return pb.SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=sampling.stop_token_ids,
        top_logprobs=sampling.top_logprobs,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
    )


def sampling_from_wire(message: pb.SamplingParams) -> SamplingParams:
    return SamplingParams(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        seed=message.seed,
        ignore_eos=message.ignore_eos,
        stop_token_ids=tuple(message.stop_token_ids),
        top_logprobs=_present(message, "top_logprobs"),
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
    )


def submit_to_wire(request: WorkerRequest, *, now: float) -> pb.Submit:
    """The deadline travels as seconds from `now`, so that no two clocks need agree."""
    message = pb.Submit(
        request_id=request.request_id,
        attempt=request.attempt,
        tokens=request.tokens,
        num_delivered=request.num_delivered,
        namespace=request.namespace,
        priority=request.priority,
        predicted_output_tokens=request.predicted_output_tokens,
        ttft_slo_seconds=request.ttft_slo_seconds,
        tbt_slo_seconds=request.tbt_slo_seconds,
        tenant=request.tenant,
        sampling=sampling_to_wire(request.sampling),
    )
    if request.deadline_at is not None:
        message.deadline_seconds = request.deadline_at - now
    return message


def submit_from_wire(message: pb.Submit, *, now: float) -> WorkerRequest:
    """Inverse of `submit_to_wire` on the receiver's clock."""
    return WorkerRequest(
        request_id=message.request_id,
        tokens=message.tokens,
        sampling=sampling_from_wire(message.sampling),
        attempt=message.attempt,
        num_delivered=message.num_delivered,
        namespace=message.namespace,
        priority=message.priority,
        deadline_at=(
            now + message.deadline_seconds if message.HasField("deadline_seconds") else None
        ),
        predicted_output_tokens=_present(message, "predicted_output_tokens"),
        ttft_slo_seconds=_present(message, "ttft_slo_seconds"),
        tbt_slo_seconds=_present(message, "tbt_slo_seconds"),
        tenant=message.tenant,
    )


def _present(message: pb.Submit | pb.SamplingParams, field: str) -> Any:
    """The value of an optional field, None where it is absent."""
    return getattr(message, field) if message.HasField(field) else None  # type: ignore[arg-type]


def logprobs_to_wire(
    logprobs: Logprobs | None, message: pb.RequestOutput | GenerateResponse
) -> None:
    """Write those of `message.tokens` beside them; None writes nothing."""
    if logprobs is not None:
        message.logprobs = logprobs.chosen
        message.top_tokens = logprobs.top_tokens
        message.top_logprobs = logprobs.top


def logprobs_from_wire(message: pb.RequestOutput | GenerateResponse) -> Logprobs | None:
    """Inverse of `logprobs_to_wire`."""
    if not message.logprobs:
        return None
    return Logprobs(message.logprobs, message.top_tokens, message.top_logprobs)


def hello_to_wire(spec: WorkerSpec, *, version: str, engine: str) -> pb.Hello:
    cost = pb.CostModel(**{name: getattr(spec.cost, name) for name in _COST_FIELDS})
    values = {name: getattr(spec, name) for name in _SPEC_FIELDS}
    return pb.Hello(**values, cost=cost, version=version, engine=engine)


def hello_from_wire(message: pb.Hello) -> WorkerSpec:
    cost = CostModel(**{name: getattr(message.cost, name) for name in _COST_FIELDS})
    return WorkerSpec(**{name: getattr(message, name) for name in _SPEC_FIELDS}, cost=cost)


def load_to_wire(load: LoadReport) -> pb.LoadReport:
    return pb.LoadReport(**{name: getattr(load, name) for name in _LOAD_FIELDS})


def load_from_wire(message: pb.LoadReport) -> LoadReport:
    return LoadReport(**{name: getattr(message, name) for name in _LOAD_FIELDS})


def output_to_wire(output: RequestOutput) -> pb.RequestOutput:
    message = pb.RequestOutput(
        request_id=output.request_id,
        attempt=output.attempt,
        position=output.position,
        tokens=output.tokens,
        cached_tokens=output.cached_tokens,
        finish_reason=finish_to_wire(output.finish_reason),
        error=output.error,
    )
    logprobs_to_wire(output.logprobs, message)
    return message


def output_from_wire(message: pb.RequestOutput) -> RequestOutput:
    return RequestOutput(
        request_id=message.request_id,
        attempt=message.attempt,
        position=message.position,
        tokens=message.tokens,
        cached_tokens=message.cached_tokens if message.HasField("cached_tokens") else None,
        finish_reason=finish_from_wire(message.finish_reason),
        error=message.error,
        logprobs=logprobs_from_wire(message),
    )


def cache_events_to_wire(batch: CacheEvents) -> pb.CacheEvents:
    return pb.CacheEvents(
        epoch=batch.epoch,
        seq=batch.seq,
        events=map(_event_to_wire, batch.events),
        host_events=map(_event_to_wire, batch.host_events),
    )


def _event_to_wire(event: CacheEvent) -> pb.CacheEvent:
    if isinstance(event, Stored):
        return pb.CacheEvent(stored=pb.Stored(path=event.path))
    return pb.CacheEvent(evicted=pb.Evicted(path=event.path, keep=event.keep))


def cache_events_from_wire(message: pb.CacheEvents) -> CacheEvents:
    return CacheEvents(
        message.epoch,
        message.seq,
        tuple(map(_event_from_wire, message.events)),
        tuple(map(_event_from_wire, message.host_events)),
    )


def _event_from_wire(message: pb.CacheEvent) -> CacheEvent:
    if message.WhichOneof("event") == "stored":
        return Stored(message.stored.path)
    return Evicted(message.evicted.path, message.evicted.keep)


def snapshot_to_wire(snapshot: CacheSnapshot) -> Iterator[pb.CacheSnapshot]:
    """The snapshot in parts of about `SNAPSHOT_PART_BYTES`; all but the last have `more` set."""
    part = _empty_part(snapshot)
    size = 0
    for on_host, paths in enumerate((snapshot.paths, snapshot.host_paths)):
        for path in paths:
            if size and size + len(path) > SNAPSHOT_PART_BYTES:
                part.more = True
                yield part
                part = _empty_part(snapshot)
                size = 0
            (part.host_paths if on_host else part.paths).append(path)
            size += len(path)
    yield part


def _empty_part(snapshot: CacheSnapshot) -> pb.CacheSnapshot:
    part = pb.CacheSnapshot(epoch=snapshot.epoch, seq=snapshot.seq, number=snapshot.number)
    if snapshot.is_difference:
        part.difference.num_buckets = snapshot.num_buckets
        part.difference.buckets.extend(snapshot.buckets)
    return part


def snapshot_from_wire(parts: Iterable[pb.CacheSnapshot]) -> CacheSnapshot:
    """Joins the parts of one snapshot, which are consecutive in the stream."""
    collected = list(parts)
    last = collected[-1]
    return CacheSnapshot(
        last.epoch,
        last.seq,
        tuple(path for part in collected for path in part.paths),
        tuple(path for part in collected for path in part.host_paths),
        number=last.number,
        num_buckets=last.difference.num_buckets,
        buckets=tuple(last.difference.buckets),
    )


def snapshot_request_to_wire(request: SnapshotRequest) -> pb.SnapshotRequest:
    return pb.SnapshotRequest(number=request.number, bucket_digests=request.bucket_digests)


def snapshot_request_from_wire(message: pb.SnapshotRequest) -> SnapshotRequest:
    return SnapshotRequest(message.number, tuple(message.bucket_digests))
