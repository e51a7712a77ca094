"""The SDK against a router in this process: what it sends, what it returns, what it raises."""

import asyncio
import doctest
import gc
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import trustme
from client_helpers import SPEC, FakeRouter, serving

import preble
import preble.client
from preble import AsyncClient, Client, errors
from preble.transport import Tls
from preble.types import FinishReason, Usage, WorkerState

ENDLESS = {"max_tokens": 999, "ignore_eos": True}


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def address(router: FakeRouter) -> Iterator[str]:
    with serving(router) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_generate_joins_the_stream(client: Client) -> None:
    answer = client.generate([1, 2, 3], max_tokens=4)
    assert answer.text == "0 1 2 3 "
    assert answer.token_ids == (6, 7, 8, 9)
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage == Usage(
        prompt_tokens=3, completion_tokens=4, cached_tokens=2, predicted_cached_tokens=1
    )
    assert answer.worker_id == "worker-1"
    assert answer.request_id == "r-1"


def test_stream_carries_usage_in_its_last_chunk_only(client: Client) -> None:
    chunks = list(client.stream("ab", max_tokens=2))
    assert [chunk.text for chunk in chunks] == ["0 ", "1 ", ""]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, FinishReason.LENGTH]
    assert [chunk.usage is None for chunk in chunks] == [True, True, False]
    assert [chunk.worker_id for chunk in chunks] == [None, None, "worker-1"]


def test_every_option_reaches_the_wire(client: Client, router: FakeRouter) -> None:
    client.generate(
        np.array([5, 6]),
        max_tokens=2,
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        seed=2**63,
        stop="x",
        stop_token_ids=[9],
        ignore_eos=True,
        namespace="tenant",
        priority=-1,
        model="demo",
        request_id="mine",
        ttft_slo_seconds=0.5,
        tbt_slo_seconds=0.25,
        top_logprobs=0,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        timeout=30,
    )
    (request,) = router.requests
    sampling = request.sampling
    assert request.WhichOneof("prompt") == "tokens"
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (2, 0.5, 0.25)
    assert (sampling.top_k, sampling.ignore_eos, list(sampling.stop_token_ids)) == (3, True, [9])
    assert sampling.HasField("top_logprobs") and sampling.top_logprobs == 0
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.25)
    assert (request.seed, list(request.stop), request.namespace) == (2**63, ["x"], "tenant")
    assert (request.priority, request.model, request.request_id) == (-1, "demo", "mine")
    assert (request.ttft_slo_seconds, request.tbt_slo_seconds) == (0.5, 0.25)
    assert router.deadlines[0] is not None and 20 < router.deadlines[0] <= 30


def test_defaults_leave_the_choice_to_the_router(client: Client, router: FakeRouter) -> None:
    client.generate("ab")
    (request,) = router.requests
    assert request.sampling.max_tokens == 0
    assert request.sampling.temperature == 1.0
    assert not request.HasField("seed")
    assert not request.sampling.HasField("top_logprobs")
    assert not request.HasField("ttft_slo_seconds") and not request.HasField("tbt_slo_seconds")
    assert router.deadlines[0] is None or router.deadlines[0] > 1e6


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ([], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([2**32], {}, "prompt"),
        ([0.5], {}, "prompt"),
        ([[1]], {}, "prompt"),
        (b"ab", {}, "prompt"),
        ("ab", {"max_tokens": 0}, "max_tokens"),
        ("ab", {"max_tokens": 2**32}, "max_tokens"),
        ("ab", {"max_tokens": 1.5}, "max_tokens"),
        ("ab", {"top_p": 0.0}, "top_p"),
        ("ab", {"top_k": -1}, "top_k"),
        ("ab", {"seed": -1}, "seed"),
        ("ab", {"top_logprobs": -1}, "top_logprobs"),
        ("ab", {"stop_token_ids": [-1]}, "stop_token_ids"),
        ("ab", {"priority": 2**31}, "priority"),
    ],
)
def test_what_the_wire_cannot_carry_is_refused_here(
    client: Client, router: FakeRouter, prompt: object, options: dict[str, object], field: str
) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        client.generate(prompt, **options)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert not router.requests


def test_an_unknown_option_is_a_type_error(client: Client) -> None:
    with pytest.raises(TypeError, match="best_of"):
        client.generate("ab", best_of=2)  # type: ignore[call-arg]


ERRORS = [
    errors.InvalidRequest("top_p is wrong", field="top_p"),
    errors.PromptTooLong("too long", num_tokens=2000, max_tokens=1024),
    errors.ModelNotFound("no such model"),
    errors.Unauthenticated("who are you"),
    errors.Overloaded("full", retry_after_seconds=2.5),
    errors.NoWorkers("none", retry_after_seconds=0.5),
    errors.WorkerFailed("died"),
    errors.DeadlineExceeded("late"),
    errors.ConfigError("odd"),
    errors.PeerError("odd"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after", [0, 2])
def test_errors_arrive_as_they_were_raised(
    client: Client, router: FakeRouter, error: errors.PrebleError, after: int
) -> None:
    router.fail_with, router.fail_after = error, after
    with pytest.raises(type(error)) as caught:
        client.generate("ab", max_tokens=5)
    assert type(caught.value) is type(error)
    assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidRequest("x", field="top_p"), errors.InvalidRequest),
        (errors.ModelNotFound("x"), errors.ModelNotFound),
        (errors.Overloaded("x"), errors.Overloaded),
        (errors.WorkerFailed("x"), errors.CapacityError),
        (errors.DeadlineExceeded("x"), errors.DeadlineExceeded),
        (errors.PeerError("x"), errors.PrebleError),
    ],
)
async def test_the_status_alone_tells_the_kind(
    address: str, router: FakeRouter, error: errors.PrebleError, kind: type[Exception]
) -> None:
    router.fail_with, router.plain_status = error, True
    async with AsyncClient(address) as client:
        with pytest.raises(kind) as streamed:
            await client.generate("ab")
        with pytest.raises(kind) as whole:
            await client.models()
    assert type(streamed.value) is type(whole.value) is kind


def test_an_answer_that_breaks_off_is_an_error(client: Client, router: FakeRouter) -> None:
    router.break_off = True
    with pytest.raises(errors.PeerError):
        client.generate("ab")


def test_nobody_listens() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(errors.CapacityError):
        client.models(timeout=20)


def test_the_deadline_ends_a_call(client: Client, router: FakeRouter) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        client.generate("ab", **ENDLESS, timeout=0.2)
    assert router.cancelled.wait(10)


def test_the_clients_timeout_is_the_default(address: str, router: FakeRouter) -> None:
    with Client(address, timeout=50) as client:
        client.generate("ab")
        client.generate("ab", timeout=None)
        client.generate("ab", timeout=9)
    assert [deadline and round(deadline, -1) for deadline in router.deadlines] == [50, 50, 10]


def test_leaving_a_stream_cancels_it(client: Client, router: FakeRouter) -> None:
    for _ in client.stream("ab", **ENDLESS):
        break
    gc.collect()
    assert router.cancelled.wait(10)


def test_closing_a_stream_cancels_it(client: Client, router: FakeRouter) -> None:
    with client.stream("ab", **ENDLESS) as chunks:
        next(chunks)
    assert router.cancelled.wait(10)
    with pytest.raises(errors.RequestCancelled):
        list(chunks)


async def arrived(router: FakeRouter) -> bool:
    return await asyncio.to_thread(router.cancelled.wait, 10)


async def test_leaving_an_async_stream_cancels_it(address: str, router: FakeRouter) -> None:
    async with AsyncClient(address) as client:
        async for _ in client.stream("ab", **ENDLESS):
            break
        gc.collect()
        assert await arrived(router)


async def test_closing_an_async_stream_cancels_it(address: str, router: FakeRouter) -> None:
    async with AsyncClient(address) as client:
        async with aclosing(client.stream("ab", **ENDLESS)) as chunks:
            await anext(chunks)
        assert await arrived(router)
        with pytest.raises(errors.RequestCancelled):
            await anext(chunks)


async def test_closing_wakes_a_reader_without_cancelling_its_task(
    address: str, router: FakeRouter
) -> None:
    async with AsyncClient(address) as client:
        chunks = client.stream("ab", **ENDLESS)

        async def read() -> str:
            try:
                return str([chunk async for chunk in chunks])
            except errors.RequestCancelled:
                return "closed"

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.1)
        chunks.close()
        assert await reader == "closed"
        assert await arrived(router)


async def test_cancelling_the_task_cancels_the_request(address: str, router: FakeRouter) -> None:
    async with AsyncClient(address) as client:
        task = asyncio.create_task(client.generate("ab", **ENDLESS))
        assert await asyncio.to_thread(router.started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await arrived(router)


async def test_both_clients_answer_alike(address: str, client: Client) -> None:
    async with AsyncClient(address) as other:
        assert await other.generate([4], max_tokens=3) == client.generate([4], max_tokens=3)
        assert await other.tokenize("hé") == client.tokenize("hé") == list("hé".encode())
        assert await other.detokenize([104, 105]) == client.detokenize([104, 105]) == "hi"
        assert await other.models() == client.models()
        assert await other.cluster() == client.cluster()
        assert await other.explain("ab") == client.explain([1, 2])


def test_an_async_client_may_be_made_before_its_loop(address: str) -> None:
    client = AsyncClient(address)

    async def use() -> int:
        async with client:
            return len((await client.generate("ab", max_tokens=2)).token_ids)

    assert asyncio.run(use()) == 2


async def test_workers_are_added_drained_and_removed(
    client: Client, address: str, router: FakeRouter
) -> None:
    client.add_worker("gpu-3:8100")
    client.drain_worker("w1", deadline_seconds=25.0)
    client.drain_worker("w2")
    client.remove_worker("w3")
    async with AsyncClient(address) as other:
        await other.add_worker("gpu-3:8100")
        await other.drain_worker("w1", deadline_seconds=25.0)
        await other.drain_worker("w2")
        await other.remove_worker("w3")
    calls = router.worker_calls
    assert calls[:4] == calls[4:]
    added, soon, slowly, removed = calls[:4]
    assert added.address == "gpu-3:8100"
    assert (soon.worker_id, soon.deadline_seconds) == ("w1", 25.0)
    assert slowly.worker_id == "w2" and not slowly.HasField("deadline_seconds")
    assert removed.worker_id == "w3"


def test_cluster_and_explanation(client: Client) -> None:
    state = client.cluster()
    worker, unreached = state.workers
    assert (state.router_id, state.policy, state.tree.held_pages) == ("router", "preble", 3)
    assert (worker.condition, worker.spec, worker.held_pages) == (
        WorkerState.READY,
        SPEC,
        11,
    )
    assert (worker.engine, worker.load.num_running) == ("simulated", 3)
    assert (unreached.condition, unreached.spec) == (WorkerState.UNREACHABLE, None)
    explanation = client.explain("ab")
    assert explanation.worker_id == "worker-1"
    assert explanation.candidates[0].terms == {"wait": 0.25}


def test_the_token_and_the_address_come_from_the_environment(
    address: str, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREBLE_GRPC_ADDRESS", f"grpc://{address}")
    monkeypatch.setenv("PREBLE_API_KEY", "from-environment")
    for client in (Client(), Client(token="given"), Client(token="")):
        with client:
            client.generate("ab")
    presented = [metadata.get("authorization") for metadata in router.metadata]
    assert presented == ["Bearer from-environment", "Bearer given", None]


def test_mutual_tls_and_a_token(router: FakeRouter, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    tls = Tls(certificate=cert, key=key, client_ca=ca)
    with serving(router, tls=tls, tokens=("secret",)) as address:
        with Client(address, ca=ca, certificate=cert, key=key, token="secret") as client:
            assert client.models()[0].id == "demo"
        tokenless = Client(address, ca=str(ca), certificate=cert, key=key)
        with tokenless, pytest.raises(errors.Unauthenticated):
            tokenless.models()
        anonymous = Client(address, ca=ca, token="secret")
        with anonymous, pytest.raises(errors.CapacityError):
            anonymous.models(timeout=20)


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("localhost", {}),
        ("http://localhost:1", {}),
        ("localhost:port", {}),
        ("localhost:1", {"certificate": "c.pem"}),
        ("localhost:1", {"certificate": "c.pem", "key": "k.pem"}),
        ("localhost:1", {"ca": "/nonexistent.pem"}),
    ],
)
def test_a_client_that_cannot_be_made(address: str, options: dict[str, str]) -> None:
    with pytest.raises(errors.ConfigError):
        Client(address, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_the_examples_run(name: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREBLE_GRPC_ADDRESS", address)
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = finder.find(getattr(preble.client, name), name, globs={})
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert sum(result.attempted for result in results) > 0
    assert not any(result.failed for result in results)


def test_the_package_names_its_clients() -> None:
    assert {"Client", "AsyncClient"} <= set(dir(preble))
    with pytest.raises(AttributeError):
        _ = preble.Server  # type: ignore[attr-defined]
