"""The router process: one event loop with the dispatcher, the HTTP gateway and the gRPC services.

start:  tokenizer -- scheduler -- dispatcher -- listen on both ports -- link to workers
stop:   not ready -- running requests go on -- the rest is ended -- servers -- links
"""

import asyncio
import gc
import logging
import random
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from preble.errors import ConfigError
from preble.transport import aio_server, listen
from preble.v1 import cluster_pb2_grpc, inference_pb2_grpc
from preble_router.config import RouterConfig
from preble_router.dispatch import Dispatcher
from preble_router.gateway.app import make_app
from preble_router.grpc_services import CLUSTER, INFERENCE, ClusterService, InferenceService
from preble_router.journal import Journal
from preble_router.journal_file import JournalFile
from preble_router.lengths import make_length_predictor
from preble_router.lengths.forecasts import LengthForecasts
from preble_router.metrics import Metrics
from preble_router.policies import make_policy
from preble_router.prompt_embedding import PromptEmbedder
from preble_router.prompt_encoding import PromptEncoder
from preble_router.scheduler import GlobalScheduler
from preble_router.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

HEALTH_SECONDS = 0.2
"""How often the health service looks whether there are workers."""
CLOSE_SECONDS = 2.0
"""For the last bytes of ended streams to leave."""
_BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Longer than client pools and proxies keep idle connections, so that they close first."""


class RouterServer:
    """One router. `start`, then `wait` or `stop`; all from one event loop.

    Attributes:
        http_address, grpc_address: host:port, once started.
        dispatcher: once started.
    """

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.http_address = ""
        self.grpc_address = ""
        self._metrics = Metrics()
        self._journal: JournalFile | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._cut_short = asyncio.Event()
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Listen and begin to link.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        config = self.config
        tokenizer = await asyncio.to_thread(Tokenizer.from_directory, config.model_path)
        predictor = make_length_predictor(config.length_predictor)
        self._embedder = await _load_embedder(config)
        self._encoder = PromptEncoder(tokenizer, embedder=self._embedder)
        self.dispatcher = Dispatcher(
            config, self._make_scheduler(), forecasts=LengthForecasts(predictor)
        )
        self._grpc = aio_server(config.api_keys)
        await self._add_services()
        listener = _listen_http(config.host, config.port)
        self.http_address = join_host_port(config.host, listener.getsockname()[1])
        try:
            grpc_address = join_host_port(config.host, config.grpc_port)
            grpc_port = listen(self._grpc, grpc_address, config.tls)
        except ConfigError:
            listener.close()
            raise
        self.grpc_address = join_host_port(config.host, grpc_port)
        await self._grpc.start()
        self._http = _HttpServer(self._http_config(tokenizer))
        self._serving = asyncio.create_task(
            self._http.serve(sockets=[listener]), name="HTTP gateway"
        )
        self.dispatcher.open()
        self._watching = asyncio.create_task(self._watch_readiness(), name="router health")
        _log.info(
            "router %s serves %s with policy %s at %s://%s, gRPC at %s",
            config.router_id,
            config.model,
            config.policy,
            "https" if config.tls else "http",
            self.http_address,
            self.grpc_address,
        )

    def _make_scheduler(self) -> GlobalScheduler:
        config = self.config
        policy, rng = make_policy(config.policy), random.Random(config.seed)
        page_tokens, most = config.page_tokens, config.max_tree_pages
        if config.journal is None:
            return GlobalScheduler(policy, rng=rng, page_tokens=page_tokens, max_tree_pages=most)
        self._journal = JournalFile(config.journal)
        journal = Journal(self._journal.write)
        return journal.start(policy, rng=rng, page_tokens=page_tokens, max_tree_pages=most)

    async def wait(self) -> None:
        """Returns when the router has stopped."""
        await self._ended.wait()

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Accept nothing more, let requests go on for up to `drain_seconds`, then end.

        Calling it again while it drains cuts that short.
        """
        if self._stopping is not None:
            self._cut_short.set()
        else:
            self._stopping = asyncio.create_task(self._stop(drain_seconds), name="router stop")
        await asyncio.shield(self._stopping)

    async def _stop(self, drain_seconds: float) -> None:
        await self._health.enter_graceful_shutdown()
        draining = asyncio.create_task(self.dispatcher.drain(drain_seconds))
        cut_short = asyncio.create_task(self._cut_short.wait())
        await asyncio.wait([draining, cut_short], return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, cut_short, self._watching):
            task.cancel()
        await asyncio.wait([draining, cut_short, self._watching])
        await self.dispatcher.close()
        self._http.should_exit = True
        await asyncio.gather(self._grpc.stop(CLOSE_SECONDS), self._serving)
        self._encoder.close()
        if self._embedder is not None:
            self._embedder.close()
        if self._journal is not None:
            self._journal.close()
        _log.info("router stopped")
        self._ended.set()

    async def _add_services(self) -> None:
        dispatcher, encoder, config = self.dispatcher, self._encoder, self.config
        inference_pb2_grpc.add_InferenceServicer_to_server(
            InferenceService(dispatcher, encoder, config, self._metrics), self._grpc
        )
        cluster_pb2_grpc.add_ClusterServicer_to_server(
            ClusterService(dispatcher, encoder, config), self._grpc
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (INFERENCE, CLUSTER, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        await self._health.set("", SERVING)
        await self._health.set(CLUSTER, SERVING)
        await self._health.set(INFERENCE, NOT_SERVING)

    async def _watch_readiness(self) -> None:
        """`Inference` serves while there is a worker; "" and `Cluster` while there is a router."""
        ready = False
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            if self.dispatcher.is_ready != ready:
                ready = self.dispatcher.is_ready
                await self._health.set(INFERENCE, SERVING if ready else NOT_SERVING)

    def _http_config(self, tokenizer: Tokenizer) -> uvicorn.Config:
        tls = self.config.tls
        return uvicorn.Config(
            make_app(
                self.dispatcher, tokenizer, self.config, self._metrics, embedder=self._embedder
            ),
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(CLOSE_SECONDS),
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
            ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
        )


async def _load_embedder(config: RouterConfig) -> PromptEmbedder | None:
    if config.length_embedder is None:
        return None
    if config.length_predictor != "retrieval":
        raise ConfigError(
            f"--length-embedder is for --length-predictor retrieval, not {config.length_predictor}"
        )
    return await asyncio.to_thread(PromptEmbedder.from_directory, config.length_embedder)


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: one process has one owner of signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen_http(host: str, port: int) -> socket.socket:
    """Listens, so that a taken port shows before anything is started."""
    bare = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {join_host_port(host, port)}: {error.strerror or error}"
        ) from error
    return listener


def join_host_port(host: str, port: int) -> str:
    """host:port, an IPv6 host in brackets."""
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{bracketed}:{port}"


def run(config: RouterConfig) -> None:
    """Run a router until SIGTERM or SIGINT; a second signal cuts draining short.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    collect_garbage_seldom()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config))


def collect_garbage_seldom() -> None:
    """Settle this process's collector for a large prefix tree, which has no garbage in it.

    As Python sets it, it takes half of the time of a warm start from 10^6 pages of short prompts,
    and a single walk through such a tree keeps the event loop from its streams for a quarter of a
    second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 100)


async def _serve(config: RouterConfig) -> None:
    server = RouterServer(config)
    tasks: set[asyncio.Task[None]] = set()

    def on_signal(number: int) -> None:
        seconds = 0.0 if tasks else config.drain_seconds
        _log.info("%s: stopping within %g s", signal.Signals(number).name, seconds)
        tasks.add(asyncio.create_task(server.stop(drain_seconds=config.drain_seconds)))

    await server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    await server.wait()
    await asyncio.wait(tasks)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with suppress(ModuleNotFoundError):
        import uvloop

        return uvloop.new_event_loop  # type: ignore[no-any-return]
    return None
