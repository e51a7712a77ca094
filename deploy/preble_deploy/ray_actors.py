"""The actors of a cluster on Ray: each runs one server in an event loop of its own thread.

Ray places the actors and starts them again; that is all it is asked for. Requests, outputs and
liveness go over the gRPC link. A worker that was started again has a new address and epoch, and
so may the router have; so each worker looks the router up by name, for as long as it lives, and
tells it where it listens.
"""

import asyncio
import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError

from preble.errors import ConfigError, InvalidRequest
from preble_deploy.models import resolve_model
from preble_deploy.ray_connection import HEADLESS_VARIABLE, RAYS_HEADLESS_SECONDS
from preble_deploy.settings import LOOPBACK
from preble_router.config import RouterConfig
from preble_router.server import RouterServer
from preble_worker.config import WorkerConfig
from preble_worker.server import WorkerServer, set_up_logging

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 1.0
CALL_SECONDS = 5.0
PAUSE_SECONDS = 1.0
"""Before another try: Ray itself starts a crashed actor again at once."""
START_ATTEMPTS = 5
FAREWELL_SECONDS = 3.0
CALLS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStatus:
    """How far an actor's server is.

    Attributes:
        address: of the HTTP gateway, or of the worker's gRPC service; "" until it serves.
        grpc_address: of the router's gRPC services.
        error: why it can never serve; starting it again would not help.
        node_id, pid: where the actor runs.
        headless_seconds: for how long it goes on to run there without Ray's head.
    """

    address: str = ""
    grpc_address: str = ""
    error: str = ""
    node_id: str = ""
    pid: int = 0
    headless_seconds: int = 0


class _Server(Protocol):
    async def wait(self) -> None: ...

    async def stop(self, *, drain_seconds: float) -> None: ...


Result = TypeVar("Result")
AnyServer = TypeVar("AnyServer", bound=_Server)


class ServerThread(Generic[AnyServer]):
    """A thread with an event loop and a server in it.

    Not Ray's own loop, which it would share with Ray's calls; and an actor with a coroutine among
    its methods gets that loop for all of them.

    Args:
        start: makes the server and starts it; adds its addresses to the status it is given.
    """

    def __init__(
        self, start: Callable[[PartStatus], Awaitable[tuple[AnyServer, PartStatus]]]
    ) -> None:
        self.status = PartStatus(
            node_id=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            headless_seconds=int(os.environ.get(HEADLESS_VARIABLE, RAYS_HEADLESS_SECONDS)),
        )
        self.server: AnyServer | None = None
        self._start = start
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="server", daemon=True).start()

    def call(self, function: Callable[[AnyServer], Result]) -> Result | None:
        """The result of `function(server)` in the server's loop; None before it serves."""

        async def called() -> Result | None:
            return None if self.server is None else function(self.server)

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result()

    def stop(self, drain_seconds: float) -> None:
        """Returns when the server has ended: running requests within `drain_seconds`, then all."""
        if self.server is not None:
            stopping = self.server.stop(drain_seconds=drain_seconds)
            asyncio.run_coroutine_threadsafe(stopping, self._loop).result()

    def _run(self) -> None:
        """Serves until told to stop. A server that breaks takes the process along."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_forever()  # Calls may still come after the server's end.
        except ConfigError as error:
            log.error("%s", error)
            self.status = replace(self.status, error=str(error))
            self._loop.run_forever()
        except BaseException:
            log.critical("the server broke; the actor ends and Ray starts it again", exc_info=True)
            logging.shutdown()
            time.sleep(PAUSE_SECONDS)
            os._exit(1)

    async def _serve(self) -> None:
        self.server, self.status = await self._start(self.status)
        await self.server.wait()
        self.server, self.status = None, replace(self.status, address="", grpc_address="")


class RouterActor:
    """The router. `config.model_path` is not used: the model's files are found on this node."""

    def __init__(self, config: RouterConfig, model: str) -> None:
        set_up_logging(config.log_level)

        async def start(status: PartStatus) -> tuple[RouterServer, PartStatus]:
            path = await asyncio.to_thread(resolve_model, model)
            server = await _started_router(replace(config, model_path=path))
            return server, replace(
                status, address=server.http_address, grpc_address=server.grpc_address
            )

        self._thread = ServerThread(start)

    def status(self) -> PartStatus:
        """How far it is."""
        return self._thread.status

    def add_worker(self, address: str) -> None:
        """Links to the worker at `address`, unless it is linked or this is not serving yet."""
        with contextlib.suppress(InvalidRequest):
            self._thread.call(lambda server: server.dispatcher.add_worker(address))

    def num_ready(self) -> int:
        """Workers that requests may be placed on."""
        cluster = self._thread.call(lambda server: server.dispatcher.status())
        return sum(worker.state == "ready" for worker in cluster.workers) if cluster else 0

    def stop(self, drain_seconds: float) -> None:
        """Lets the router end, and then the actor."""
        self._thread.stop(drain_seconds)
        _end_actor()


async def _started_router(config: RouterConfig) -> RouterServer:
    """The router that Ray starts again may find its ports not free yet."""
    for _ in range(START_ATTEMPTS - 1):
        try:
            server = RouterServer(config)
            await server.start()
        except ConfigError as error:
            log.warning("%s; trying again", error)
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return server
    server = RouterServer(config)
    await server.start()
    return server


class WorkerActor:
    """A worker. `config.model_path` is not used: the model's files are found on this node."""

    def __init__(self, config: WorkerConfig, model: str, router: str, namespace: str) -> None:
        set_up_logging(config.log_level)

        async def start(status: PartStatus) -> tuple[WorkerServer, PartStatus]:
            path = await asyncio.to_thread(resolve_model, model)
            server = WorkerServer(replace(config, model_path=path, host=_listening_host()))
            return server, replace(status, address=await server.start())

        self._thread = ServerThread(start)
        self._stopping = threading.Event()
        threading.Thread(
            target=self._announce, args=(router, namespace), name="announce", daemon=True
        ).start()

    def status(self) -> PartStatus:
        """How far it is."""
        return self._thread.status

    def stop(self, drain_seconds: float) -> None:
        """Lets the worker end, and then the actor."""
        self._stopping.set()
        self._thread.stop(drain_seconds)
        _end_actor()

    def _announce(self, router: str, namespace: str) -> None:
        """The thread that tells the router where this worker is, while they are not linked."""
        while not self._stopping.wait(ANNOUNCE_SECONDS * random.uniform(0.8, 1.2)):
            address = self._thread.status.address
            if not address or self._thread.call(lambda server: server.is_linked()):
                continue
            # ValueError: no actor of that name. RayError: it is being started again, or gone.
            with contextlib.suppress(RayError, ValueError):
                actor = ray.get_actor(router, namespace=namespace)
                ray.get(actor.add_worker.remote(address), timeout=CALL_SECONDS)


def _end_actor() -> None:
    """Without Ray's head nobody could kill it, and its own end waits for that head's answer."""
    timer = threading.Timer(FAREWELL_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()
    ray.actor.exit_actor()


def _listening_host() -> str:
    """Loopback, unless the cluster has nodes from which loopback is another machine."""
    addresses = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return ray.util.get_node_ip_address() if len(addresses) > 1 else LOOPBACK
