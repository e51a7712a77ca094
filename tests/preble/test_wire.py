"""Every value survives the wire."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from preble import wire
from preble.cost import CostModel
from preble.events import CacheEvents, CacheSnapshot, Evicted, SnapshotRequest, Stored
from preble.types import (
    FinishReason,
    LoadReport,
    Logprobs,
    RequestOutput,
    SamplingParams,
    WorkerRequest,
    WorkerSpec,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
F32 = st.floats(0, 2, width=32)
SECONDS = st.floats(0, 1e6)
NAMES = st.text(max_size=8)

COSTS = st.builds(
    CostModel,
    name=NAMES,
    fixed=SECONDS,
    per_prefill_token=SECONDS,
    per_attention=SECONDS,
    per_decode=SECONDS,
    per_context_token=SECONDS,
    weight_read=SECONDS,
    per_hidden_token=SECONDS,
    per_int8_token=SECONDS,
    per_product=SECONDS,
    roofline=st.booleans(),
    source=NAMES,
)
SPECS = st.builds(
    WorkerSpec,
    worker_id=NAMES,
    epoch=U64,
    model=NAMES,
    page_tokens=U32,
    capacity_tokens=U64,
    max_batch_tokens=U32,
    max_sequences=U32,
    context_tokens=U32,
    vocab_size=U32,
    cost=COSTS,
    host_capacity_tokens=U64,
    host_token_seconds=SECONDS,
)
SAMPLINGS = st.builds(
    SamplingParams,
    max_tokens=U32,
    temperature=F32,
    top_p=F32,
    top_k=U32,
    seed=U64,
    ignore_eos=st.booleans(),
    stop_token_ids=st.lists(U32, max_size=3).map(tuple),
    top_logprobs=st.none() | st.integers(0, 20),
    presence_penalty=F32,
    frequency_penalty=F32.map(lambda penalty: -penalty),
)
LOADS = st.builds(
    LoadReport,
    num_waiting=U32,
    num_running=U32,
    waiting_prefill_tokens=U64,
    decode_context_tokens=U64,
    free_pages=U32,
    cached_pages=U32,
    used_pages=U32,
    tree_pages=U32,
    tree_key_sum=U64,
    preemptions_total=U64,
    prompt_tokens_total=U64,
    cached_tokens_total=U64,
    busy_seconds_total=SECONDS,
    host_pages=U32,
    loaded_tokens_total=U64,
)
OUTPUTS = st.builds(
    RequestOutput,
    request_id=NAMES,
    attempt=U32,
    position=U32,
    tokens=st.binary(max_size=16),
    cached_tokens=st.none() | U32,
    finish_reason=st.none() | st.sampled_from(FinishReason),
    error=NAMES,
    logprobs=st.none()
    | st.builds(Logprobs, st.binary(min_size=1, max_size=8), st.binary(), st.binary()),
)
EVENTS = st.builds(Stored, st.binary(max_size=32)) | st.builds(Evicted, st.binary(max_size=32), U32)


@given(SPECS)
def test_hello(spec: WorkerSpec) -> None:
    assert wire.hello_from_wire(wire.hello_to_wire(spec, version="1", engine="torch")) == spec


@given(LOADS)
def test_load(load: LoadReport) -> None:
    assert wire.load_from_wire(wire.load_to_wire(load)) == load


@given(OUTPUTS)
def test_output(output: RequestOutput) -> None:
    assert wire.output_from_wire(wire.output_to_wire(output)) == output


@given(st.lists(EVENTS, max_size=5), st.lists(EVENTS, max_size=5), U64, U64)
def test_cache_events(
    events: list[Stored | Evicted], on_host: list[Stored | Evicted], epoch: int, seq: int
) -> None:
    batch = CacheEvents(epoch, seq, tuple(events), tuple(on_host))
    assert wire.cache_events_from_wire(wire.cache_events_to_wire(batch)) == batch


@given(SAMPLINGS, st.none() | st.integers(0, 100), st.integers(0, 1000), st.integers(0, 1000))
def test_submit_carries_the_deadline_across_clocks(
    sampling: SamplingParams, seconds: int | None, ours: int, theirs: int
) -> None:
    request = WorkerRequest(
        request_id="r",
        tokens=b"\1\0\0\0",
        sampling=sampling,
        attempt=2,
        num_delivered=1,
        namespace="n",
        priority=-3,
        deadline_at=None if seconds is None else ours + seconds,
        predicted_output_tokens=8,
        ttft_slo_seconds=0.5,
        tbt_slo_seconds=0.125,
        tenant="acme",
    )
    back = wire.submit_from_wire(wire.submit_to_wire(request, now=ours), now=theirs)
    assert back.deadline_at == (None if seconds is None else theirs + seconds)
    assert back.sampling == sampling
    assert (back.tokens, back.attempt, back.num_delivered) == (request.tokens, 2, 1)
    assert (back.namespace, back.priority, back.predicted_output_tokens) == ("n", -3, 8)
    assert (back.ttft_slo_seconds, back.tbt_slo_seconds, back.tenant) == (0.5, 0.125, "acme")


def test_a_difference_and_its_request_survive_the_wire() -> None:
    digests = (0, 1, 0xFFFF_FFFF, *range(13))
    request = SnapshotRequest(3, digests)
    assert wire.snapshot_request_from_wire(wire.snapshot_request_to_wire(request)) == request
    for paths in ((), (b"12345678",) * 3):
        difference = CacheSnapshot(1, 2, paths, number=3, num_buckets=16, buckets=(0, 9))
        parts = list(wire.snapshot_to_wire(difference))
        assert wire.snapshot_from_wire(parts) == difference and difference.is_difference


@pytest.mark.parametrize(("num_paths", "num_host_paths"), [(0, 0), (1, 0), (9, 0), (1, 9), (0, 1)])
def test_a_large_snapshot_travels_in_parts(num_paths: int, num_host_paths: int) -> None:
    paths = tuple(bytes([i]) * (1 << 20) for i in range(num_paths + num_host_paths))
    snapshot = CacheSnapshot(3, 7, paths[:num_paths], paths[num_paths:])
    parts = list(wire.snapshot_to_wire(snapshot))
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert all(part.ByteSize() <= wire.SNAPSHOT_PART_BYTES + 100 for part in parts)
    assert wire.snapshot_from_wire(parts) == snapshot


def test_an_unknown_finish_reason_is_an_error() -> None:
    assert wire.finish_from_wire(99) is FinishReason.ERROR  # type: ignore[arg-type]
