"""The worker process: engine, loop, gRPC server and announcements, from start to drain.

start:  load ── loop ── listen ── serve ── announce
stop:   health off ── take nothing more ── let requests end ── loop ── links ── server
"""

import asyncio
import gc
import logging
import os
import random
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import preble
from preble.transport import aio_server, listen
from preble.types import WorkerSpec
from preble.v1 import worker_pb2_grpc
from preble.wire import hello_to_wire
from preble_worker.announce import Announcement, Announcer, join_host_port
from preble_worker.config import WorkerConfig
from preble_worker.engine_loop import EngineLoop
from preble_worker.engines import load_engine
from preble_worker.loaded import LoadedEngine
from preble_worker.loop_messages import (
    Delivery,
    Drain,
    Drained,
    EngineFailed,
    LoopReport,
    SnapshotTaken,
    Stop,
    Stopped,
)
from preble_worker.scheduler import LocalScheduler
from preble_worker.service import WorkerService

log = logging.getLogger(__name__)

SERVICE = "preble.v1.Worker"
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING

MAX_UNDELIVERED = 4
"""Deliveries on their way to the routers. An engine faster than the wire waits here."""

LAG_POLL_SECONDS = 0.002

HANG_SECONDS = 2.0
"""Silence of the step loop, beyond the step it announced, after which health says NOT_SERVING."""

WATCH_SECONDS = 0.25

JOIN_SECONDS = 5.0
"""A step in flight may take as long when the worker stops; a hung engine is abandoned."""

LINK_FLUSH_SECONDS = 1.0


class WorkerServer:
    """One worker. `start`, then `wait` or `stop`; all from one event loop.

    Args:
        loaded: the engine, if it is loaded already; `start` loads it otherwise.
    """

    def __init__(self, config: WorkerConfig, loaded: LoadedEngine | None = None) -> None:
        self._config = config
        self._loaded = loaded
        self._epoch = _new_epoch()
        self._undelivered = threading.Semaphore(MAX_UNDELIVERED)
        self._drained = asyncio.Event()
        self._loop_ended = asyncio.Event()
        self._failure: EngineFailed | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._started = False
        self._ended = asyncio.Event()
        self._stop_at = float("inf")
        self._drain_timeout: asyncio.Timeout | None = None
        self._silent_at = float("inf")

    async def start(self) -> str:
        """Load, listen and begin to serve; returns the address, host:port.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        config = self._config
        loaded = self._loaded
        if loaded is None:
            loaded = await asyncio.to_thread(load_engine, config)
        scheduler = LocalScheduler(replace(loaded.scheduler, cost=loaded.cost), epoch=self._epoch)
        self._event_loop = asyncio.get_running_loop()
        self._engine_loop = EngineLoop(loaded, scheduler, deliver=self._deliver)
        self._server = aio_server((config.token,) if config.token else ())
        port = listen(self._server, join_host_port(config.host, config.port), config.tls)
        spec = self._spec(loaded, port)
        self._service = WorkerService(
            hello_to_wire(spec, version=preble.__version__, engine=loaded.name),
            post=self._engine_loop.post,
            drain=self._obey_drain,
        )
        await self._add_services()
        self._silent_at = self._event_loop.time() + HANG_SECONDS
        self._engine_loop.start()
        await self._server.start()
        self._started = True
        self._watch = asyncio.create_task(self._watch_loop(), name="watch the engine loop")
        self._announcer = Announcer(
            config.routers,
            Announcement(
                host=config.host,
                port=port,
                advertise=config.advertise,
                token=config.router_token,
                ca=config.router_ca,
            ),
            is_linked=self._service.is_linked,
            rng=random.Random(self._epoch),
        )
        self._announcer.start()
        address = join_host_port(config.host, port)
        log.info(
            "worker %s serves %s at %s: engine %s, %d KV tokens, epoch %d",
            spec.worker_id,
            spec.model,
            address,
            loaded.name,
            spec.capacity_tokens,
            spec.epoch,
        )
        return address

    def is_linked(self) -> bool:
        """Whether any router is linked, once started."""
        return self._service.is_linked("")

    async def wait(self) -> None:
        """Return when the worker has stopped.

        Raises:
            EngineFailed: it stopped because its step loop did.
        """
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self, *, drain_seconds: float) -> None:
        """Take no more requests, let the running ones go on for up to `drain_seconds`, then end.

        Calling it again while it drains can only shorten that. Without effect before
        `start`.
        """
        if not self._started:
            self._ended.set()
            return
        self._stop_at = min(self._stop_at, self._event_loop.time() + drain_seconds)
        if self._drain_timeout is not None and not self._drained.is_set():
            self._drain_timeout.reschedule(self._stop_at)
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="stop the worker")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        """However it goes, the process ends: without memory, or threads, it goes badly."""
        try:
            await self._stop_parts()
        finally:
            self._ended.set()

    async def _stop_parts(self) -> None:
        await self._health.enter_graceful_shutdown()
        await self._announcer.stop()
        if not self._loop_ended.is_set():
            await self._drain()
            self._engine_loop.post(Stop())
        # A loop that has ended is not waited for in a thread: there may be no memory for one.
        join = self._engine_loop.join
        if not (self._loop_ended.is_set() or await asyncio.to_thread(join, JOIN_SECONDS)):
            log.error("the engine hangs in a step and is abandoned")
        self._watch.cancel()
        self._service.end_links()
        await self._server.stop(LINK_FLUSH_SECONDS)
        log.info("worker stopped")

    async def _drain(self) -> None:
        self._engine_loop.post(Drain())
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._stop_at) as self._drain_timeout:
                await self._drained.wait()
        if not self._drained.is_set():
            log.warning("requests are still running; their routers place them elsewhere")

    def begin_stop(self, *, drain_seconds: float) -> None:
        """`stop`, for callers that cannot wait: signal handlers, and routers that say Drain."""
        task = asyncio.create_task(self.stop(drain_seconds=drain_seconds))
        task.add_done_callback(_reraise)

    def _obey_drain(self, deadline_seconds: float | None) -> None:
        own = self._config.drain_seconds
        self.begin_stop(drain_seconds=own if deadline_seconds is None else deadline_seconds)

    def _deliver(self, delivery: Delivery) -> None:
        """In the engine loop's thread: hand over one delivery, not too far ahead."""
        self._undelivered.acquire()
        try:
            self._event_loop.call_soon_threadsafe(self._take, delivery)
        except RuntimeError:
            # Back from the step in which it was abandoned; what it is told next is to stop.
            if not self._event_loop.is_closed():
                raise

    def _take(self, delivery: Delivery) -> None:
        """On the event loop: pass one delivery on."""
        try:
            self._pass_on(delivery)
        finally:
            self._release_when_read()

    def _release_when_read(self) -> None:
        """Let the step loop deliver once more, as soon as no router lags."""
        if self._service.lags:
            self._event_loop.call_later(LAG_POLL_SECONDS, self._release_when_read)
        else:
            self._undelivered.release()

    def _pass_on(self, delivery: Delivery) -> None:
        match delivery:
            case LoopReport():
                ahead = HANG_SECONDS + delivery.next_step_seconds
                self._silent_at = self._event_loop.time() + ahead
                self._service.deliver(delivery)
            case SnapshotTaken():
                self._service.deliver(delivery)
            case Drained():
                self._drained.set()
            case Stopped(failure):
                self._loop_ended.set()
                self._drained.set()
                self._failure = failure
                if failure is not None:
                    log.critical("%s; the worker ends", failure)
                    self.begin_stop(drain_seconds=0.0)

    async def _add_services(self) -> None:
        worker_pb2_grpc.add_WorkerServicer_to_server(self._service, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._set_health(SERVING)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def _watch_loop(self) -> None:
        """Health follows the step loop's reports: an engine that hangs is not serving."""
        hangs = False
        while True:
            may_speak = self._engine_loop.is_alive
            await asyncio.sleep(WATCH_SECONDS)
            if not (may_speak or self._loop_ended.is_set()):
                # What it said last has had the time to come. It may have had no memory to say it.
                self._pass_on(Stopped(EngineFailed("the step loop died without a word")))
                return
            silent = self._event_loop.time() > self._silent_at
            if silent != hangs:
                hangs = silent
                log.log(
                    logging.ERROR if hangs else logging.WARNING,
                    "the step loop %s",
                    "has gone silent" if hangs else "speaks again",
                )
                await self._set_health(NOT_SERVING if hangs else SERVING)

    def _spec(self, loaded: LoadedEngine, port: int) -> WorkerSpec:
        options = loaded.scheduler
        return WorkerSpec(
            worker_id=self._config.worker_id or f"{socket.gethostname()}-{port}",
            epoch=self._epoch,
            model=self._config.model,
            page_tokens=options.page_tokens,
            capacity_tokens=options.num_pages * options.page_tokens,
            max_batch_tokens=options.max_batch_tokens,
            max_sequences=options.max_sequences,
            context_tokens=options.context_tokens,
            vocab_size=loaded.vocab_size,
            cost=loaded.cost,
            host_capacity_tokens=options.host_capacity_tokens,
            host_token_seconds=options.host_token_seconds,
        )


def run(config: WorkerConfig) -> None:
    """Run a worker until SIGTERM, SIGINT or a router's Drain; a second signal cuts draining short.

    The process ends with code 1 when the engine failed; it must be started again.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    set_up_logging(config.log_level)
    # Loaded before there is an event loop, so that a signal meanwhile ends the process at once.
    loaded = load_engine(config)
    # A full collection that walks torch's and transformers' objects stops the step loop for a third
    # of a second (measured, 350,000 objects); frozen, they are never walked again.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner, ending_at_failure():
        runner.run(_serve(config, loaded))


@contextmanager
def ending_at_failure() -> Iterator[None]:
    """The engine failed: the process ends at once with code 1.

    Without memory it would hang in its own end, which starts a thread, and nobody would start it
    again.
    """
    try:
        yield
    except EngineFailed:
        logging.shutdown()
        os._exit(1)


def set_up_logging(level: str) -> None:
    """Lines of time, level, place and sentence on stderr; nothing if logging is set up already."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


async def _serve(config: WorkerConfig, loaded: LoadedEngine) -> None:
    server = WorkerServer(config, loaded)
    await server.start()
    num_signals = 0

    def on_signal(number: int) -> None:
        nonlocal num_signals
        num_signals += 1
        drain_seconds = config.drain_seconds if num_signals == 1 else 0.0
        log.info("%s: stopping within %g s", signal.Signals(number).name, drain_seconds)
        server.begin_stop(drain_seconds=drain_seconds)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    await server.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop  # type: ignore[no-any-return]


def _new_epoch() -> int:
    """Later processes have larger epochs; two that start within a microsecond still differ."""
    return (time.time_ns() // 1000) << 12 | secrets.randbits(12)


def _reraise(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.result()
