"""`Inference` and `Cluster` over a real socket, asked with plain stubs and with the SDK."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fake_worker import MODEL, FakeWorker, fake_tokens
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pretend_logprobs import pretend_logprobs
from router_helpers import num_ready, router, until

from preble import AsyncClient
from preble.errors import InvalidRequest, ModelNotFound, NoWorkers, PromptTooLong, Unauthenticated
from preble.page_keys import pack_tokens
from preble.types import Logprobs
from preble.v1 import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc
from preble.v1 import worker_pb2 as pb
from preble.wire import logprobs_from_wire
from preble_deploy.demo_model import make_demo_model
from preble_router.server import RouterServer

VOCAB = 1000
IDS = list(range(50, 90))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_model(tmp_path_factory.mktemp("model") / "demo")


@asynccontextmanager
async def serving(
    model_path: Path, *workers: FakeWorker, **options: Any
) -> AsyncIterator[tuple[RouterServer, grpc.aio.Channel]]:
    """A router and an open channel to it."""
    async with router(*workers, model_path=model_path, **options) as server:  # noqa: SIM117
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            yield server, channel


def small_worker(**spec: Any) -> FakeWorker:
    return FakeWorker(vocab_size=VOCAB, **spec)


def generate_request(max_tokens: int = 10, **fields: Any) -> inference_pb2.GenerateRequest:
    fields = {"tokens": pack_tokens(IDS), "seed": 0} | fields
    sampling = fields.pop("sampling", pb.SamplingParams(max_tokens=max_tokens))
    return inference_pb2.GenerateRequest(sampling=sampling, **fields)


async def test_generate_streams_exact_tokens_and_their_text(model_path: Path) -> None:
    async with serving(model_path, small_worker()) as (server, channel):
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = generate_request(max_tokens=30, request_id="mine", namespace="t", priority=2)
        messages = [message async for message in stub.Generate(request)]
        tokens = b"".join(message.tokens for message in messages)
        assert tokens == fake_tokens(request.tokens, 30, vocab_size=VOCAB)
        assert {message.request_id for message in messages} == {"mine"}
        decoded = await stub.Tokenize(inference_pb2.TokenizeRequest(tokens=tokens))
        assert "".join(message.text for message in messages) == decoded.text
        last = messages[-1]
        assert last.finish_reason == pb.FINISH_REASON_LENGTH
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(IDS), 30)
        assert last.usage.worker_id == "w0"
        assert not any(message.HasField("usage") for message in messages[:-1])
        assert server.dispatcher.num_live == 0


async def test_log_probabilities_stand_beside_the_tokens(model_path: Path) -> None:
    async with serving(model_path, small_worker(tokens_per_step=3)) as (server, channel):
        stub = inference_pb2_grpc.InferenceStub(channel)
        sampling = pb.SamplingParams(max_tokens=20, top_logprobs=2)
        request = generate_request(sampling=sampling, stop=["no such text"])
        messages = [message async for message in stub.Generate(request)]
        assert all(len(message.logprobs) == len(message.tokens) for message in messages)
        tokens = b"".join(message.tokens for message in messages)
        told = Logprobs.joined([m for message in messages if (m := logprobs_from_wire(message))])
        assert told == pretend_logprobs(tokens, 2)
        async with AsyncClient(server.grpc_address) as client:
            answer = await client.generate(IDS, max_tokens=5, seed=0, top_logprobs=2)
            plain = await client.generate(IDS, max_tokens=5, seed=0)
            with pytest.raises(InvalidRequest, match="top_logprobs must be from 0 to 20, not 21"):
                await client.generate(IDS, top_logprobs=21)
    assert answer.token_ids == plain.token_ids
    assert (plain.logprobs, plain.top_logprobs) == ((), ())
    assert answer.logprobs == tuple(-(t % 31 + i) / 8 for i, t in enumerate(answer.token_ids))
    assert answer.top_logprobs == tuple(
        {token: -i / 8, token + 1: -(i + 1) / 8} for i, token in enumerate(answer.token_ids)
    )


async def test_max_tokens_zero_is_the_rest_of_the_context_and_top_p_zero_is_one(
    model_path: Path,
) -> None:
    worker = small_worker(context_tokens=64)
    async with serving(model_path, worker) as (_, channel):
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = inference_pb2.GenerateRequest(tokens=pack_tokens(IDS))
        messages = [message async for message in stub.Generate(request)]
        assert messages[-1].usage.completion_tokens == 64 - len(IDS)
        assert worker.submits[0].sampling.top_p == 1.0
        assert worker.submits[0].sampling.seed != 0, "drawn by the router"


async def test_stop_strings_end_the_output_and_free_the_worker(model_path: Path) -> None:
    worker = small_worker()
    async with serving(model_path, worker) as (_, channel):
        stub = inference_pb2_grpc.InferenceStub(channel)
        whole = [m async for m in stub.Generate(generate_request(40, request_id="same"))]
        text = "".join(message.text for message in whole)
        stop = text[len(text) // 2 :][:3]
        messages = [m async for m in stub.Generate(generate_request(2000, stop=[stop]))]
        assert "".join(message.text for message in messages) == text.partition(stop)[0]
        assert messages[-1].finish_reason == pb.FINISH_REASON_STOP
        await until(lambda: not worker.running)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"sampling": pb.SamplingParams(max_tokens=5, temperature=2.5)}, "temperature"),
        ({"sampling": pb.SamplingParams(max_tokens=5, temperature=float("nan"))}, "temperature"),
        ({"sampling": pb.SamplingParams(max_tokens=5, top_p=1.5)}, "top_p"),
        ({"sampling": pb.SamplingParams(max_tokens=5, top_p=-0.5)}, "top_p"),
        ({"sampling": pb.SamplingParams(stop_token_ids=range(65))}, "stop_token_ids"),
        ({"stop": [str(i) for i in range(17)]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"tokens": b"abc"}, "tokens"),
        ({"tokens": b""}, "tokens"),
        ({"tokens": pack_tokens([5000])}, "tokens"),
        ({"text": "", "tokens": None}, "text"),
        ({"tokens": None}, "prompt"),
        ({"namespace": "n" * 257}, "namespace"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"ttft_slo_seconds": 0.0}, "ttft_slo_seconds"),
        ({"tbt_slo_seconds": float("nan")}, "tbt_slo_seconds"),
    ],
)
async def test_bad_fields_are_refused_by_name(
    model_path: Path, fields: dict[str, Any], name: str
) -> None:
    async with serving(model_path, small_worker()) as (server, channel):
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [message async for message in stub.Generate(generate_request(**fields))]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert name in (caught.value.details() or "")
        assert dict(caught.value.trailing_metadata() or ())["preble-field"] == name
        assert server.dispatcher.num_live == 0


async def test_errors_are_the_sdk_s_classes(model_path: Path) -> None:
    async with serving(model_path, small_worker(context_tokens=128)) as (server, _):  # noqa: SIM117
        async with AsyncClient(server.grpc_address) as client:
            with pytest.raises(PromptTooLong) as too_long:
                await client.generate(list(range(100)), max_tokens=29)
            assert (too_long.value.num_tokens, too_long.value.max_tokens) == (129, 128)
            with pytest.raises(ModelNotFound):
                await client.generate(IDS, model="other")
            with pytest.raises(InvalidRequest) as wrong:
                await client.generate(IDS, temperature=3.0)
            assert wrong.value.field == "temperature"
    async with serving(model_path) as (server, channel):
        async with AsyncClient(server.grpc_address) as client:
            with pytest.raises(NoWorkers):
                await client.generate(IDS)
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [message async for message in stub.Generate(generate_request())]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert float(str(dict(caught.value.trailing_metadata() or ())["retry-after"])) > 0


async def test_a_client_that_goes_away_frees_the_worker(model_path: Path) -> None:
    worker = small_worker()
    async with serving(model_path, worker) as (server, channel):
        stub = inference_pb2_grpc.InferenceStub(channel)
        call = stub.Generate(generate_request(max_tokens=3000))
        await call.read()
        assert server.dispatcher.num_live == 1
        call.cancel()
        await until(lambda: server.dispatcher.num_live == 0)
        await until(lambda: not worker.running)
        worker.faults.paused = True
        call = stub.Generate(generate_request())
        await until(lambda: server.dispatcher.num_live == 1)
        call.cancel()  # Before anything has come.
        await until(lambda: server.dispatcher.num_live == 0)


async def test_a_call_s_deadline_reaches_the_worker_and_is_kept(model_path: Path) -> None:
    worker = small_worker()
    worker.faults.paused = True
    async with serving(model_path, worker) as (server, channel):
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [m async for m in stub.Generate(generate_request(), timeout=0.3)]
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < worker.submits[0].deadline_seconds <= 0.3
        await until(lambda: server.dispatcher.num_live == 0)


async def test_tokenize_both_ways_and_models(model_path: Path) -> None:
    async with serving(model_path, small_worker()) as (server, _):  # noqa: SIM117
        async with AsyncClient(server.grpc_address) as client:
            ids = await client.tokenize("Once upon a time")
            assert await client.detokenize(ids) == "Once upon a time"
            (model,) = await client.models()
            assert (model.id, model.context_tokens) == (MODEL, 4096)


async def test_the_cluster_is_seen_and_changed_from_outside(model_path: Path) -> None:
    first, second = FakeWorker("w0"), FakeWorker("w1")
    async with serving(model_path, first) as (server, channel):
        stub = cluster_pb2_grpc.ClusterStub(channel)
        answer = await stub.AddWorker(cluster_pb2.AddWorkerRequest(address=await second.start()))
        assert answer.router_id == "r0"
        await until(lambda: num_ready(server.dispatcher) == 2)
        state = await stub.GetCluster(cluster_pb2.GetClusterRequest())
        assert (state.router_id, state.policy, state.live_requests) == ("r0", "preble", 0)
        assert [worker.hello.worker_id for worker in state.workers] == ["w0", "w1"]
        assert {worker.state for worker in state.workers} == {cluster_pb2.WORKER_STATE_READY}
        request = cluster_pb2.ExplainRouteRequest(text="Once upon a time")
        route = await stub.ExplainRoute(request)
        assert route.worker_id in {"w0", "w1"}
        assert {candidate.worker_id for candidate in route.candidates} == {"w0", "w1"}
        assert route.prompt_tokens > 0
        assert route.reason
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            request = cluster_pb2.DrainWorkerRequest(worker_id="w1", deadline_seconds=-1.0)
            await stub.DrainWorker(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not second.drained
        await stub.DrainWorker(
            cluster_pb2.DrainWorkerRequest(worker_id="w1", deadline_seconds=60.0)
        )
        await until(lambda: second.drained)
        await stub.RemoveWorker(cluster_pb2.RemoveWorkerRequest(worker_id="w1"))
        state = await stub.GetCluster(cluster_pb2.GetClusterRequest())
        assert [worker.hello.worker_id for worker in state.workers] == ["w0"]
        for call in (
            stub.DrainWorker(cluster_pb2.DrainWorkerRequest(worker_id="w1")),
            stub.RemoveWorker(cluster_pb2.RemoveWorkerRequest(worker_id="w1")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.AddWorker(cluster_pb2.AddWorkerRequest(address="nonsense"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await second.stop()


async def test_api_keys_guard_everything_but_health(model_path: Path) -> None:
    async with serving(model_path, small_worker(), api_keys=("k1", "k2")) as (server, channel):
        for key in ("k1", "k2"):
            async with AsyncClient(server.grpc_address, token=key) as client:
                await client.generate(IDS, max_tokens=2)
        async with AsyncClient(server.grpc_address, token="k3") as client:
            with pytest.raises(Unauthenticated):
                await client.generate(IDS, max_tokens=2)
            with pytest.raises(Unauthenticated):
                await client.cluster()
        assert await health(channel, "") == health_pb2.HealthCheckResponse.SERVING


async def health(channel: grpc.aio.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_health_follows_the_workers(model_path: Path) -> None:
    worker = small_worker()
    serving_status = health_pb2.HealthCheckResponse.SERVING
    async with serving(model_path) as (server, channel):
        assert await health(channel, "") == serving_status
        assert await health(channel, "preble.v1.Inference") != serving_status
        server.dispatcher.add_worker(await worker.start())
        async with asyncio.timeout(20):
            while await health(channel, "preble.v1.Inference") != serving_status:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await worker.stop()


async def test_reflection_lists_the_services(model_path: Path) -> None:
    async with serving(model_path) as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {"preble.v1.Inference", "preble.v1.Cluster", "grpc.health.v1.Health"} <= names
        call.cancel()
