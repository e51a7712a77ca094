"""A worker makes itself known to routers until they link, and again when they go."""

import asyncio
import random
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from worker_link_helpers import LinkClient, simulated

from preble.transport import RequireToken
from preble.v1 import cluster_pb2, cluster_pb2_grpc
from preble_worker import announce
from preble_worker.announce import Announcement, Announcer
from preble_worker.config import WorkerConfig
from preble_worker.server import WorkerServer

PATIENCE_SECONDS = 20.0


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(announce, "PERIOD_SECONDS", 0.02)


class Router(cluster_pb2_grpc.ClusterServicer):
    """Takes announcements down."""

    def __init__(self, router_id: str):
        self.router_id = router_id
        self.addresses: asyncio.Queue[str] = asyncio.Queue()
        self.address = ""

    async def AddWorker(self, request, context):
        self.addresses.put_nowait(request.address)
        return cluster_pb2.AddWorkerResponse(router_id=self.router_id)

    async def announced(self) -> str:
        return await asyncio.wait_for(self.addresses.get(), PATIENCE_SECONDS)

    async def falls_silent(self) -> None:
        """Wait until announcements stop coming, ten periods long."""
        while True:
            try:
                await asyncio.wait_for(self.addresses.get(), 10 * announce.PERIOD_SECONDS)
            except TimeoutError:
                return


@asynccontextmanager
async def router(router_id: str, *, token: str = "", port: int = 0):
    interceptors = [RequireToken((token,))] if token else []
    running = grpc.aio.server(interceptors=interceptors)
    servicer = Router(router_id)
    cluster_pb2_grpc.add_ClusterServicer_to_server(servicer, running)
    servicer.address = f"127.0.0.1:{running.add_insecure_port(f'127.0.0.1:{port}')}"
    await running.start()
    try:
        yield servicer
    finally:
        await running.stop(0)


@asynccontextmanager
async def worker(*routers: str, **options):
    config = WorkerConfig(
        model="m", model_path=Path("/nowhere"), engine="simulated", routers=routers, **options
    )
    running = WorkerServer(config, simulated())
    running.address = await running.start()
    try:
        yield running
    finally:
        await running.stop(drain_seconds=0.0)


async def test_it_announces_until_that_router_links_and_again_when_it_goes(caplog):
    caplog.set_level("INFO")
    async with router("ra") as a, router("rb") as b, worker(a.address, b.address) as running:
        assert await a.announced() == running.address
        assert await b.announced() == running.address
        link = await LinkClient.connect(running.address, "ra")
        await a.falls_silent()
        while not b.addresses.empty():
            b.addresses.get_nowait()
        await b.announced()
        await link.close()
        await a.announced()
    assert f"router at {a.address} is linked" in caplog.text


async def test_a_router_that_returns_under_another_name_is_told_anew():
    async with router("old") as old, worker(old.address) as running:
        await old.announced()
        link = await LinkClient.connect(running.address, "old")
        await old.falls_silent()
        port = int(old.address.rpartition(":")[2])
        await link.close()
        await old.announced()
    async with worker(f"127.0.0.1:{port}") as running:
        await asyncio.sleep(5 * announce.PERIOD_SECONDS)
        async with router("new", port=port) as new:
            assert await new.announced() == running.address
            link = await LinkClient.connect(running.address, "new")
            await new.falls_silent()
            await link.close()


async def test_an_unreachable_router_is_complained_of_once(caplog):
    caplog.set_level("INFO")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    async with worker(address):
        await asyncio.sleep(15 * announce.PERIOD_SECONDS)
    complaints = [r for r in caplog.messages if "cannot be told" in r]
    assert complaints == [f"router at {address} cannot be told of this worker: UNAVAILABLE"]


async def test_a_router_that_never_links_is_complained_of(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(announce, "PATIENCE_CALLS", 2)
    async with router("deaf") as deaf, worker(deaf.address) as running:
        for _ in range(10):
            await deaf.announced()
    complaints = [r for r in caplog.messages if "does not link" in r]
    assert len(complaints) == 1
    assert running.address in complaints[0]


async def test_credentials_and_the_advertised_address_reach_the_router():
    async with (
        router("r", token="key") as strict,
        worker(strict.address, router_token="key", advertise="worker-7.example:9000"),
    ):
        assert await strict.announced() == "worker-7.example:9000"


async def test_a_wrong_token_is_named(caplog):
    caplog.set_level("INFO")
    async with router("r", token="key") as strict, worker(strict.address, router_token="wrong"):
        await asyncio.sleep(10 * announce.PERIOD_SECONDS)
        assert strict.addresses.empty()
    assert "cannot be told of this worker: UNAUTHENTICATED" in caplog.text


async def test_a_wildcard_host_is_announced_as_the_address_towards_the_router():
    async with router("r") as near:
        announcer = Announcer(
            (near.address,),
            Announcement(host="0.0.0.0", port=1234),
            is_linked=lambda _: False,
            rng=random.Random(0),
        )
        announcer.start()
        assert await near.announced() == "127.0.0.1:1234"
        await announcer.stop()


async def test_a_stopped_worker_announces_no_more():
    async with router("r") as near:
        async with worker(near.address):
            await near.announced()
        await near.falls_silent()
