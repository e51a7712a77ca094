"""All workers gone: what new requests and running streams get, and that it heals by itself."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_worker import MODEL, FakeWorker
from router_helpers import num_ready, router, until

from preble_deploy.demo_model import make_demo_model
from preble_router.server import RouterServer


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_model(tmp_path_factory.mktemp("model") / "demo")


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 2000} | fields


def gateway(server: RouterServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{server.http_address}", timeout=30.0)


async def last_event(client: httpx.AsyncClient) -> dict[str, Any]:
    """Of a stream that was accepted and had begun."""
    events = []
    async with client.stream("POST", "/v1/completions", json=body(stream=True)) as answer:
        assert answer.status_code == 200
        events = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
    assert len(events) > 1
    return dict(json.loads(events[-1].removeprefix("data: ")))


@pytest.mark.parametrize("stream", [False, True])
async def test_new_requests_are_refused_at_once(model_path: Path, stream: bool) -> None:
    worker = FakeWorker(vocab_size=1000)
    async with router(worker, model_path=model_path) as server, gateway(server) as client:
        await worker.stop()
        await until(lambda: num_ready(server.dispatcher) == 0)
        answer = await client.post("/v1/completions", json=body(stream=stream))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "no_workers"
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200


async def test_streams_end_with_an_error_event_and_it_goes_on_when_a_worker_is_back(
    model_path: Path,
) -> None:
    workers = [FakeWorker(f"w{i}", vocab_size=1000) for i in range(2)]
    async with router(*workers, model_path=model_path) as server, gateway(server) as client:
        dispatcher = server.dispatcher
        streams = [asyncio.create_task(last_event(client)) for _ in range(4)]
        await until(lambda: sum(len(worker.running) for worker in workers) == 4)
        await until(lambda: all(g.num_output_tokens > 3 for g in dispatcher.attempts.live.values()))
        ports = [int(worker.address.rpartition(":")[2]) for worker in workers]
        for worker in workers:
            await worker.stop()
        for event in await asyncio.gather(*streams):
            assert event["error"]["code"] == "worker_failed"
        assert dispatcher.num_live == 0
        await workers[0].start(port=ports[0])
        await until(lambda: num_ready(dispatcher) == 1)
        answer = await client.post("/v1/completions", json=body(max_tokens=5))
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 5


async def test_streams_survive_when_a_worker_is_back_soon(model_path: Path) -> None:
    worker = FakeWorker(vocab_size=1000)
    async with router(worker, model_path=model_path) as server, gateway(server) as client:
        request = body(max_tokens=300, ignore_eos=True)
        answer = asyncio.create_task(client.post("/v1/completions", json=request))
        await until(lambda: len(worker.running) == 1)
        port = int(worker.address.rpartition(":")[2])
        await worker.stop()
        await until(lambda: num_ready(server.dispatcher) == 0)
        await worker.start(port=port)
        assert (await answer).json()["usage"]["completion_tokens"] == 300
