"""Tells routers that this worker is there, for as long as they are not linked to it.

A router's answer names the router; its link, when it comes, bears the same name. So the worker
speaks up again when that router goes away, or another one takes over its address.
"""

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from preble.transport import aio_channel, bearer
from preble.v1 import cluster_pb2, cluster_pb2_grpc

log = logging.getLogger(__name__)

PERIOD_SECONDS = 0.5
CALL_SECONDS = 5.0
PATIENCE_CALLS = 10
"""Announcements that a router took without linking, before the worker complains of it."""

WILDCARD_HOSTS = frozenset({"", "0.0.0.0", "::", "[::]"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """Attributes:
    host, port: where routers reach this worker; a wildcard host stands for whatever address
        this machine has on the way to the router.
    advertise: host:port to announce instead, "" for none.
    token, ca: credentials to present to routers.
    """

    host: str
    port: int
    advertise: str = ""
    token: str = ""
    ca: Path | None = None


class Announcer:
    """One task per router address.

    Args:
        is_linked: whether a router of that id is linked to this worker.
    """

    def __init__(
        self,
        routers: tuple[str, ...],
        announcement: Announcement,
        *,
        is_linked: Callable[[str], bool],
        rng: random.Random,
    ) -> None:
        self._routers = routers
        self._announcement = announcement
        self._is_linked = is_linked
        self._rng = rng
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to announce."""
        self._tasks = [
            asyncio.create_task(self._keep_linked(router), name=f"announce to {router}")
            for router in self._routers
        ]

    async def stop(self) -> None:
        """Announce no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_linked(self, router: str) -> None:
        router_id: str | None = None
        num_unanswered = 0
        said = ""
        while True:
            if router_id is not None and self._is_linked(router_id):
                num_unanswered = 0
                news = f"router at {router} is linked"
            else:
                router_id, news = await self._announce(router)
                num_unanswered = 0 if router_id is None else num_unanswered + 1
                if num_unanswered > PATIENCE_CALLS:
                    address = await self._address(router)
                    news = f"router at {router} knows of {address} but does not link: ask its log"
            if news and news != said:
                log.info("%s", news)
                said = news
            await asyncio.sleep(PERIOD_SECONDS * self._rng.uniform(0.8, 1.2))

    async def _announce(self, router: str) -> tuple[str | None, str]:
        """The router's id, or why there is none.

        Each call has its own channel: a router that comes back must not find us in backoff.
        """
        request = cluster_pb2.AddWorkerRequest(address=await self._address(router))
        try:
            async with aio_channel(router, ca=self._announcement.ca) as channel:
                stub = cluster_pb2_grpc.ClusterStub(channel)
                answer = await stub.AddWorker(
                    request, timeout=CALL_SECONDS, metadata=bearer(self._announcement.token)
                )
        except grpc.aio.AioRpcError as error:
            return None, f"router at {router} cannot be told of this worker: {error.code().name}"
        return answer.router_id, ""

    async def _address(self, router: str) -> str:
        own = self._announcement
        if own.advertise:
            return own.advertise
        host = own.host
        if host in WILDCARD_HOSTS:
            host = await asyncio.to_thread(_host_towards, router)
        return join_host_port(host, own.port)


def join_host_port(host: str, port: int) -> str:
    """host:port, with brackets about an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _host_towards(address: str) -> str:
    """The address of the interface by which this machine would reach `address`."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # A datagram socket: nothing is sent.
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return socket.gethostname()
