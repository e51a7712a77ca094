"""The whole router: both doors, readiness, draining, signals, TLS, ports."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import trustme
from fake_worker import FakeWorker
from router_helpers import num_ready, router, router_config, until

from preble import AsyncClient
from preble.errors import ConfigError, NoWorkers
from preble.page_keys import pack_tokens
from preble.transport import Tls
from preble_deploy.demo_model import make_demo_model
from preble_router.journal import placements, replay
from preble_router.journal_file import JournalFile
from preble_router.server import RouterServer, join_host_port

IDS = list(range(50, 90))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_model(tmp_path_factory.mktemp("model") / "demo")


def small_worker(**spec: object) -> FakeWorker:
    return FakeWorker(vocab_size=1000, **spec)  # type: ignore[arg-type]


async def test_both_doors_give_the_same_tokens(model_path: Path) -> None:
    async with router(small_worker(), model_path=model_path) as server:
        body = {"model": "fake", "prompt": IDS, "max_tokens": 12, "temperature": 0, "seed": 5}
        async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
            answer = (await http.post("/v1/completions", json=body)).json()
        async with AsyncClient(server.grpc_address) as client:
            completion = await client.generate(IDS, max_tokens=12, temperature=0, seed=5)
        assert answer["choices"][0]["text"] == completion.text
        assert answer["usage"]["completion_tokens"] == 12


async def test_ready_only_while_there_is_a_worker(model_path: Path) -> None:
    worker = small_worker()
    async with router(model_path=model_path) as server:
        async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).status_code == 503
            server.dispatcher.add_worker(await worker.start())
            await until(lambda: num_ready(server.dispatcher) == 1)
            assert (await http.get("/ready")).status_code == 200
            cluster = (await http.get("/cluster")).json()
            assert [each["worker_id"] for each in cluster["workers"]] == ["w0"]
            assert "preble_router_workers" in (await http.get("/metrics")).text
        await worker.stop()


async def test_a_client_that_hangs_up_frees_the_worker(model_path: Path) -> None:
    worker = small_worker()
    async with router(worker, model_path=model_path) as server:
        body = {"model": "fake", "prompt": IDS, "max_tokens": 3000, "stream": True}
        async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:  # noqa: SIM117
            async with http.stream("POST", "/v1/completions", json=body) as response:
                await anext(response.aiter_lines())
                assert server.dispatcher.num_live == 1
        await until(lambda: server.dispatcher.num_live == 0)
        await until(lambda: not worker.running)


async def test_stopping_lets_streams_finish_and_takes_no_new_ones(model_path: Path) -> None:
    worker = small_worker()
    async with router(worker, model_path=model_path) as server:
        url = f"http://{server.http_address}"
        body = {"model": "fake", "prompt": IDS, "max_tokens": 150, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=url) as http, AsyncClient(server.grpc_address) as rpc:
            over_http = asyncio.create_task(http.post("/v1/completions", json=body))
            over_grpc = asyncio.create_task(rpc.generate(IDS, max_tokens=150))
            await until(lambda: server.dispatcher.num_live == 2)
            stopping = asyncio.create_task(server.stop(drain_seconds=30))
            await until(lambda: not server.dispatcher.is_ready)
            assert (await http.get("/ready")).status_code == 503
            refused = await http.post("/v1/completions", json=body)
            assert refused.status_code == 503
            assert float(refused.headers["retry-after"]) > 0
            with pytest.raises(NoWorkers):
                await rpc.generate(IDS, max_tokens=2)
            assert (await over_http).json()["usage"]["completion_tokens"] == 150
            assert len((await over_grpc).token_ids) == 150
        await stopping
        await server.wait()


async def test_stopping_twice_cuts_the_draining_short(model_path: Path) -> None:
    worker = small_worker()
    worker.faults.paused = True
    async with router(worker, model_path=model_path) as server:  # noqa: SIM117
        async with AsyncClient(server.grpc_address) as client:
            request = asyncio.create_task(client.generate(IDS, max_tokens=10))
            await until(lambda: server.dispatcher.num_live == 1)
            stopping = asyncio.create_task(server.stop(drain_seconds=3600))
            await until(lambda: not server.dispatcher.is_ready)
            await server.stop(drain_seconds=3600)
            await stopping
            with pytest.raises(Exception, match="router stops"):
                await request


@pytest.mark.parametrize("option", ["port", "grpc_port"])
async def test_a_taken_port_is_a_clear_error(model_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = {"port": 0, "grpc_port": 0} | {option: port}
        server = RouterServer(router_config(model_path=model_path, **options))
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            await server.start()


async def test_configurations_that_cannot_be_used(model_path: Path, tmp_path: Path) -> None:
    for options, complaint in (
        ({"model_path": tmp_path}, "tokenizer.json"),
        ({"model_path": model_path, "policy": "best"}, "'best'"),
        ({"model_path": model_path, "host": "256.1.1.1"}, "cannot listen"),
    ):
        server = RouterServer(router_config(port=0, grpc_port=0, **options))
        with pytest.raises(ConfigError, match=complaint):
            await server.start()


def test_addresses_of_both_kinds() -> None:
    assert join_host_port("127.0.0.1", 80) == "127.0.0.1:80"
    assert join_host_port("::1", 80) == "[::1]:80"
    assert join_host_port("[::1]", 80) == "[::1]:80"


async def test_ipv6(model_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    async with router(small_worker(), model_path=model_path, host="::1") as server:
        async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
            assert (await http.get("/ready")).status_code == 200
        async with AsyncClient(server.grpc_address) as client:
            assert len((await client.generate(IDS, max_tokens=2)).token_ids) == 2


async def test_tls_and_tokens_on_every_side(model_path: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, certificate, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    tls = Tls(certificate=certificate, key=key)
    worker = small_worker()
    await worker.start(tls=tls, token="for workers")
    options = {"tls": tls, "api_keys": ("k",), "worker_ca": ca, "worker_token": "for workers"}
    async with router(worker, model_path=model_path, **options) as server:
        async with AsyncClient(server.grpc_address, ca=str(ca), token="k") as client:
            assert len((await client.generate(IDS, max_tokens=2)).token_ids) == 2
        body = {"prompt": IDS, "max_tokens": 2}
        trust = ssl.create_default_context(cafile=ca)
        async with httpx.AsyncClient(
            base_url=f"https://{server.http_address}", verify=trust
        ) as http:
            assert (await http.post("/v1/completions", json=body)).status_code == 401
            headers = {"authorization": "Bearer k"}
            answer = await http.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 200


PROGRAM = """
import json, sys
from pathlib import Path
from preble_router.config import RouterConfig
from preble_router.server import run
options = json.loads(sys.argv[1])
run(RouterConfig(model="fake", model_path=Path(options.pop("model_path")),
                 workers=tuple(options.pop("workers", ())), **options))
"""


def start_process(model_path: Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps({"model_path": str(model_path)} | options)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def wait_ready(port: int) -> None:
    give_up_at = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


@pytest.mark.parametrize("signals", [1, 2])
async def test_signals_end_the_process_well(model_path: Path, signals: int) -> None:
    worker = small_worker()
    http_port, grpc_port = free_ports()
    process = start_process(
        model_path, port=http_port, grpc_port=grpc_port, workers=[await worker.start()]
    )
    try:
        await asyncio.to_thread(wait_ready, http_port)
        async with AsyncClient(f"127.0.0.1:{grpc_port}") as client:
            worker.faults.paused = signals == 2
            request = asyncio.create_task(client.generate(IDS, max_tokens=100))
            await until(lambda: len(worker.submits) == 1)
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
            if signals == 1:
                assert len((await request).token_ids) == 100
            else:
                with pytest.raises(Exception, match="router stops"):
                    await request
        _, errors = await asyncio.to_thread(process.communicate, timeout=30)
    finally:
        process.kill()
        await worker.stop()
    assert process.returncode == 0, errors
    assert f"http://127.0.0.1:{http_port}" in errors, "the log says where it serves"
    assert "Traceback" not in errors


async def test_tokens_reach_workers_in_the_wire_s_form(model_path: Path) -> None:
    worker = small_worker()
    async with router(worker, model_path=model_path) as server:
        body = {"model": "fake", "prompt": IDS, "max_tokens": 3, "cache_salt": "tenant"}
        async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
            await http.post("/v1/completions", json=body)
        assert worker.submits[0].tokens == pack_tokens(IDS)
        assert worker.submits[0].namespace == "tenant"


async def test_objectives_and_the_tenant_reach_workers_through_both_doors(model_path: Path) -> None:
    worker = small_worker()
    async with router(worker, model_path=model_path) as server:
        objectives = {"ttft_slo_seconds": 0.5, "tbt_slo_seconds": 0.25}
        body = {"model": "fake", "prompt": IDS, "max_tokens": 3, "cache_salt": "acme"}
        async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
            answer = await http.post("/v1/completions", json=body | objectives)
            assert answer.status_code == 200
        async with AsyncClient(server.grpc_address) as client:
            await client.generate(IDS, max_tokens=3, namespace="acme", **objectives)  # type: ignore[misc]
            await client.generate(IDS, max_tokens=3)
        with_objectives, also, without = worker.submits
        for submit in (with_objectives, also):
            assert (submit.ttft_slo_seconds, submit.tbt_slo_seconds) == (0.5, 0.25)
            assert submit.tenant == "acme"
            assert 1 <= submit.predicted_output_tokens <= 3
        assert not without.HasField("ttft_slo_seconds") and not without.HasField("tbt_slo_seconds")
        assert without.tenant == ""


async def test_the_api_key_says_who_is_charged_whatever_the_namespace(model_path: Path) -> None:
    worker = small_worker()
    async with router(worker, model_path=model_path, api_keys=("k1", "k2")) as server:
        for key, namespace in (("k1", ""), ("k1", "k2"), ("k2", "")):
            async with AsyncClient(server.grpc_address, token=key) as client:
                await client.generate(IDS, max_tokens=2, namespace=namespace)
        body = {"model": "fake", "prompt": IDS, "max_tokens": 2, "cache_salt": "k1"}
        headers = {"Authorization": "bearer  k2"}
        async with httpx.AsyncClient(base_url=f"http://{server.http_address}") as http:
            await http.post("/v1/completions", json=body, headers=headers)
        first, again, second, over_http = [submit.tenant for submit in worker.submits]
        assert first == again != second == over_http
        assert "k1" not in first and "k2" not in second, "the key itself goes nowhere"


async def test_the_journal_replays_to_the_same_placements(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("an older one")
    workers = [small_worker(worker_id=f"w{i}") for i in range(2)]
    async with router(*workers, model_path=model_path, journal=path) as server:  # noqa: SIM117
        async with AsyncClient(server.grpc_address) as client:
            for i in range(6):
                await client.generate([*IDS, i], max_tokens=3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    made = placements(lines)
    assert [placement.worker_id for placement in made].count("w0") == len(workers[0].submits)
    assert len(made) == 6
    assert replay(lines) == made
    assert (tmp_path / "journal.jsonl.previous").read_text() == "an older one"


def test_a_journal_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="journal is"):
        JournalFile(tmp_path / "nowhere" / "journal.jsonl")


def test_a_full_disk_ends_the_journal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    opened = full.open("wb")
    monkeypatch.setattr(Path, "open", lambda *_, **__: opened)
    journal = JournalFile(tmp_path / "journal.jsonl")
    for _ in range(10):
        journal.write({"at": 1.0, "tick": {}})
    journal.close()
    assert caplog.text.count("ends here") == 1
