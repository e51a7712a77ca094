"""Channels and servers: TLS, mutual TLS and tokens, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from preble.errors import ConfigError
from preble.transport import Tls, aio_channel, aio_server, bearer, listen
from preble.v1 import inference_pb2, inference_pb2_grpc


class Models(inference_pb2_grpc.InferenceServicer):
    async def ListModels(self, request, context):  # type: ignore[no-untyped-def]
        return inference_pb2.ListModelsResponse(models=[inference_pb2.Model(id="m")])

    async def Generate(self, request, context):  # type: ignore[no-untyped-def]
        yield inference_pb2.GenerateResponse(text="hello")


@asynccontextmanager
async def server(*, tls: Tls | None = None, tokens: tuple[str, ...] = ()) -> AsyncIterator[str]:
    running = aio_server(tokens)
    inference_pb2_grpc.add_InferenceServicer_to_server(Models(), running)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), running)
    port = listen(running, "localhost:0", tls)
    await running.start()
    try:
        yield f"localhost:{port}"
    finally:
        await running.stop(None)


async def models(channel: grpc.aio.Channel, token: str = "") -> list[str]:
    stub = inference_pb2_grpc.InferenceStub(channel)
    answer = await stub.ListModels(
        inference_pb2.ListModelsRequest(), metadata=bearer(token), timeout=5
    )
    return [model.id for model in answer.models]


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, Path]:
    authority = trustme.CA()
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(paths["key"])
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    return paths


async def test_plain_text() -> None:
    async with server() as address, aio_channel(address) as channel:
        assert await models(channel) == ["m"]


async def test_tls(certificates: dict[str, Path]) -> None:
    tls = Tls(certificate=certificates["cert"], key=certificates["key"])
    async with server(tls=tls) as address:
        async with aio_channel(address, ca=certificates["ca"]) as channel:
            assert await models(channel) == ["m"]
        async with aio_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await models(channel)


async def test_mutual_tls_refuses_a_client_without_a_certificate(
    certificates: dict[str, Path],
) -> None:
    own = Tls(certificate=certificates["cert"], key=certificates["key"])
    tls = Tls(
        certificate=certificates["cert"], key=certificates["key"], client_ca=certificates["ca"]
    )
    async with server(tls=tls) as address:
        async with aio_channel(address, ca=certificates["ca"], client=own) as channel:
            assert await models(channel) == ["m"]
        async with aio_channel(address, ca=certificates["ca"]) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await models(channel)


@pytest.mark.parametrize("token", ["", "wrong", "secre", "secrets"])
async def test_a_wrong_token_is_refused_on_every_shape_of_call(token: str) -> None:
    async with server(tokens=("secret", "other")) as address, aio_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await models(channel, token)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        stub = inference_pb2_grpc.InferenceStub(channel)
        stream = stub.Generate(inference_pb2.GenerateRequest(), metadata=bearer(token))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_each_of_the_tokens_is_accepted_and_health_needs_none() -> None:
    async with server(tokens=("secret", "other")) as address, aio_channel(address) as channel:
        assert await models(channel, "secret") == await models(channel, "other") == ["m"]
        check = health_pb2_grpc.HealthStub(channel).Check
        assert (await check(health_pb2.HealthCheckRequest())).status


async def test_a_taken_port_is_a_configuration_error() -> None:
    async with server() as address:
        with pytest.raises(ConfigError, match=address):
            listen(aio_server(), address, None)


async def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    tls = Tls(certificate=tmp_path / "none.pem", key=tmp_path / "none.key")
    with pytest.raises(ConfigError, match=r"none\.key"):
        listen(aio_server(), "localhost:0", tls)
