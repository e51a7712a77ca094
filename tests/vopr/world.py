"""One simulated life of a cluster, from a seed: routers, workers, clients, faults; a verdict."""

import asyncio
import hashlib
import logging
import random
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import xxhash
from vopr.clients import Client, make_asks
from vopr.faults import Fault, draw_faults, storm
from vopr.network import Network, Wire
from vopr.routers import Router, RouterHost
from vopr.violation import Violation
from vopr.virtual_loop import VirtualLoop
from vopr.workers import Cluster, EngineBroke, Host, Process

from preble.v1 import worker_pb2 as pb
from preble_worker.config import SchedulerConfig

BUSY_SECONDS = 4.0
"""When requests and faults begin, counted from the first second."""
HEALING_SECONDS = 30.0
"""After the last fault, until when everything is at rest and healthy."""
DEEP_CHECK_SECONDS = 1.0
ROUTING_POLICIES = ("preble",) * 5 + ("e2", "round_robin", "power_of_two", "cache_aware")
LOCAL_POLICIES = ("preble_groups",) * 3 + ("fcfs", "lpm", "srpt", "mlfq", "dlpm", "edf", "alise")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a seed.

    Attributes:
        violation: "" if there was none.
        digest: of everything that happened, in order.
        outcomes: of the clients. faults: that struck, by name.
        virtual_seconds, cpu_seconds: what it took.
        trace: the last things that happened; all of them in a replay.
    """

    seed: int
    violation: str
    digest: str
    outcomes: Counter[str]
    faults: Counter[str]
    num_steps: int
    virtual_seconds: float
    cpu_seconds: float
    trace: tuple[str, ...]


class World:
    """Everything of one run."""

    def __init__(
        self, seed: int, loop: VirtualLoop, *, echo: Callable[[str], None] | None = None
    ) -> None:
        self.loop = loop
        self.num_steps = 0
        self.violation = ""
        self.trace: deque[str] = deque(maxlen=200)
        self._echo = echo
        self._hash = hashlib.blake2b(digest_size=8)
        self._seed = seed
        rng = self._rng("world")
        self.network = Network(self._rng("network"), self)
        cluster = Cluster(self.network, self._rng("workers"), self.tell)
        self.router_names = ("r0", "r1")[: rng.choice((1, 1, 2))]
        cluster.router_names = self.router_names
        cluster.announce = self._announce
        config = SchedulerConfig(
            num_pages=rng.choice((40, 80, 300)),
            max_batch_tokens=rng.choice((64, 256)),
            max_sequences=rng.choice((4, 16)),
            context_tokens=600,
            policy=rng.choice(LOCAL_POLICIES),
        )
        self.hosts = [Host(f"w{i}", cluster, config=config) for i in range(rng.choice((3, 4, 5)))]
        self.zombies: list[Process] = []
        self.routers = [RouterHost(name) for name in self.router_names]
        self._policy = rng.choice(ROUTING_POLICIES)
        self._expected_seconds = rng.choice((1.0, 10.0))
        self._statics = tuple(h.address for h in self.hosts[: rng.randrange(len(self.hosts) + 1)])
        is_storm = rng.random() < 0.05
        asks = make_asks(
            rng,
            count=60 if is_storm else rng.choice((8, 16, 28)),
            begin=loop.time() + 1.0,
            seconds=0.5 if is_storm else BUSY_SECONDS,
        )
        cluster.poisonous = {xxhash.xxh3_64_intdigest(a.prompt) for a in asks if a.is_poisonous}
        self.clients = [Client(ask, self._rng(f"client {ask.name}")) for ask in asks]
        self.faults: list[Fault] = draw_faults(self._rng("faults"))
        if is_storm:
            self.faults.append(storm)
        self._deep_at = 0.0
        loop.before_time_passes = self._end_of_instant
        loop.set_exception_handler(self._escaped)

    def _rng(self, purpose: str) -> random.Random:
        """Each has its own luck, so that a change in one leaves the others as they were."""
        return random.Random(f"{self._seed}/{purpose}")

    # What happens.

    async def run(self) -> None:
        for host in self.hosts:
            host.start()
        for host in self.routers:
            self.start_router(host)
        clients = [
            asyncio.create_task(self._follow(client), name=f"client {client.ask.name}")
            for client in self.clients
        ]
        await asyncio.gather(*(self._strike(i, fault) for i, fault in enumerate(self.faults)))
        self.tell("the last fault is over")
        last_fault_at = self.loop.time()
        busy_until = 1001.0 + BUSY_SECONDS
        limit = max(last_fault_at, busy_until, self.loop.jumped_at) + HEALING_SECONDS
        async with asyncio.timeout_at(limit + 1.0):
            await asyncio.wait(clients)
        for client in clients:
            client.result()
        while unhealthy := self.unhealthy():
            if self.loop.time() > limit:
                raise Violation(f"{HEALING_SECONDS:g} s after the last fault: {unhealthy}")
            await asyncio.sleep(0.25)
        self.tell("all is healthy")
        self._check_nothing_is_left()
        await self._close()

    async def _follow(self, client: Client) -> None:
        client.outcome = await client.run(self.routers)
        self.tell("client", client.ask.name, client.outcome)

    async def _strike(self, number: int, fault: Fault) -> None:
        rng = self._rng(f"fault {number}")
        await asyncio.sleep(rng.uniform(0.8, 1.0 + BUSY_SECONDS))
        await fault(self, rng)

    def start_router(self, host: RouterHost) -> None:
        host.num_lives += 1
        host.router = Router(
            host.name,
            self.network,
            rng=self._rng(f"router {host.name} {host.num_lives}"),
            policy=self._policy,
            expected_seconds=self._expected_seconds,
            workers=self._statics,
        )
        self.tell("router starts", host.name)

    async def stop_router(self, host: RouterHost) -> None:
        """Its connections break at once, and nothing of it stays."""
        router, host.router = host.router, None
        assert router is not None
        self.network.sever(router=host.name)
        await router.dispatcher.close()
        self.tell("router gone", host.name)

    def _announce(self, name: str, address: str) -> str | None:
        router = next(host.router for host in self.routers if host.name == name)
        if router is None or any(
            self.network.is_blocked(name, address, way) for way in ("up", "down")
        ):
            return None
        router.dispatcher.add_worker(address)
        return name

    async def _close(self) -> None:
        """All is stopped; then nothing may be left."""
        for host in self.routers:
            await self.stop_router(host)
        for host in self.hosts:
            assert host.process is not None
            host.process.end()
        await asyncio.sleep(0.1)
        left = [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        if left:
            raise Violation(f"tasks are left: {sorted(left)}")

    # What is told.

    def tell(self, *what: object) -> None:
        """It belongs to the trace."""
        line = f"{self.loop.time():11.6f}  {' '.join(map(str, what))}"
        self._hash.update(line.encode())
        self.trace.append(line)
        if self._echo is not None:
            self._echo(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def submitted(self, wire: Wire, message: pb.RouterMessage) -> None:
        submit = message.submit
        self.tell(wire, "<- submit", submit.request_id, submit.attempt, submit.num_delivered)
        if (router := self._router(wire)) is not None:
            with self._noting():
                router.submitted(wire, submit)

    def heard(self, wire: Wire, message: pb.WorkerMessage) -> None:
        self.num_steps += 1
        step = message.step
        if step.outputs or step.HasField("cache"):
            outputs = [f"{o.request_id}@{o.position}" for o in step.outputs]
            self.tell(wire, "-> step", step.step, f"events {step.cache.seq}", *outputs)
        elif not message.HasField("step"):
            self.tell(wire, "->", message.WhichOneof("message"))
        if (router := self._router(wire)) is not None:
            with self._noting():
                router.heard(wire, message)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """A violation that shows in the middle of production's code is none of its business."""
        try:
            yield
        except Violation as error:
            self.violated(error)

    def _router(self, wire: Wire) -> Router | None:
        return next(host.router for host in self.routers if host.name == wire.router)

    def _escaped(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        self.violated(error if isinstance(error, Exception) else Violation(str(context)))

    def violated(self, error: BaseException) -> None:
        """Keep the first one; the instant's end raises it."""
        if not self.violation:
            where = traceback.extract_tb(error.__traceback__)[-1:] or [None]
            at = f" ({where[0].filename.rpartition('/')[2]}:{where[0].lineno})" if where[0] else ""
            self.violation = f"{type(error).__name__}: {error}{at}"

    # What must hold.

    def _end_of_instant(self) -> None:
        if self.violation:
            raise Violation(self.violation)
        for host in self.routers:
            if host.router is not None:
                host.router.check()
        if self.loop.time() >= self._deep_at:
            self._deep_at = self.loop.time() + DEEP_CHECK_SECONDS
            self._check_deeply()

    def _check_deeply(self) -> None:
        for host in self.routers:
            if host.router is not None:
                host.router.check_deeply()
        zombies = [process for process in self.zombies if process.is_alive]
        for process in [h.process for h in self.hosts if h.process] + zombies:
            process.check()

    def unhealthy(self) -> str:
        """Why not all is at rest."""
        processes = {}
        for host in self.hosts:
            if host.process is None:
                return f"{host.name} does not run"
            if not host.process.is_idle:
                return f"{host.name} still computes"
            load = host.process.scheduler.load()
            digest = load.tree_pages, load.tree_key_sum
            processes[host.name] = host.process.epoch, digest
        for router_host in self.routers:
            if router_host.router is None:
                return f"{router_host.name} does not run"
            if why := router_host.router.unhealthy(processes):
                return why
        return ""

    def _check_nothing_is_left(self) -> None:
        """At rest no timer and no task of any request is left."""
        timers = [t for t in self.loop.live_timers() if "deadline" in repr(t)]
        if timers:
            raise Violation(f"timers are left: {timers}")


class _NoErrors(logging.Handler):
    """What production logs with a traceback was not foreseen, but for what a fault has raised."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, EngineBroke):
            self._world.violated(error)


def run_seed(seed: int, *, echo: Callable[[str], None] | None = None) -> Verdict:
    """Live through one seed."""
    began_at = time.process_time()
    loop = VirtualLoop()
    world = World(seed, loop, echo=echo)
    watch = _NoErrors(world)
    loggers = [logging.getLogger(name) for name in ("preble_router", "preble_worker")]
    levels = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(watch)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
    try:
        loop.run_until_complete(world.run())
    except TimeoutError:
        world.violated(Violation("clients are left hanging"))
    except (AssertionError, Exception) as error:
        world.violated(error)
    finally:
        _abandon(loop)
        for logger, (level, propagate) in zip(loggers, levels, strict=True):
            logger.removeHandler(watch)
            logger.setLevel(level)
            logger.propagate = propagate
    return Verdict(
        seed=seed,
        violation=world.violation,
        digest=world.digest,
        outcomes=Counter(client.outcome for client in world.clients),
        faults=Counter(fault.__name__ for fault in world.faults),
        num_steps=world.num_steps,
        virtual_seconds=loop.time() - 1000.0,
        cpu_seconds=time.process_time() - began_at,
        trace=tuple(world.trace),
    )


def _abandon(loop: VirtualLoop) -> None:
    """After a violation tasks are left, which must end without a word."""
    loop.before_time_passes = lambda: None
    loop.set_exception_handler(lambda _, __: None)
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
    loop.close()
