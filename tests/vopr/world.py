"""One simulated life of a cluster, from a seed: routers, workers, clients, faults; a verdict."""

import asyncio
import gc
import hashlib
import logging
import random
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from vopr.asks import Poison, features, prompt_hash
from vopr.clients import Client
from vopr.faults import ANY_TIME, Fault
from vopr.life import BUSY_SECONDS, Life, draw_life
from vopr.network import Network, Wire
from vopr.routers import Router, RouterHost
from vopr.violation import Violation
from vopr.virtual_loop import VirtualLoop
from vopr.workers import Cluster, EngineBroke, Host, Process

from preble.v1 import worker_pb2 as pb

HEALING_SECONDS = 30.0
"""After the last fault, until when everything is at rest and healthy."""
DEEP_CHECK_SECONDS = 1.0


@dataclass(slots=True)
class Verdict:
    """What became of a seed.

    Attributes:
        violation: "" if there was none.
        digest: of everything that happened, in order.
        outcomes: of the clients. struck: what happened, by kind. traits: what was lived with.
        features: what was asked for.
        virtual_seconds, cpu_seconds: what it took.
        trace: the last things that happened before a violation.
    """

    seed: int
    violation: str
    digest: str
    outcomes: Counter[str]
    struck: Counter[str]
    traits: Counter[str]
    features: Counter[str]
    num_steps: int
    virtual_seconds: float
    cpu_seconds: float
    trace: tuple[str, ...]


class World:
    """Everything of one run."""

    def __init__(
        self, life: Life, loop: VirtualLoop, *, echo: Callable[[str], None] | None = None
    ) -> None:
        self.life = life
        self.loop = loop
        self.num_steps = 0
        self.violation = ""
        self.trace: deque[str] = deque(maxlen=200)
        self.strikes: Counter[str] = Counter()
        self._echo = echo
        self._hash = hashlib.blake2b(digest_size=8)
        self.network = Network(self._rng("network"), self)
        self.router_names = ("r0", "r1")[: life.num_routers]
        cluster = self._make_cluster()
        self.hosts = [Host(f"w{i}", cluster, config=life.worker) for i in range(life.num_workers)]
        self.zombies: list[Process] = []
        self.routers = [RouterHost(name) for name in self.router_names]
        self._routers = {host.name: host for host in self.routers}
        self.clients = [
            Client(ask, self._rng(f"client {ask.name}"), self.struck) for ask in life.asks
        ]
        self._count_bursts()
        self._deep_at = 0.0
        loop.before_time_passes = self._end_of_instant
        loop.set_exception_handler(self._escaped)

    def _make_cluster(self) -> Cluster:
        cluster = Cluster(self.network, self._rng("workers"), now=self.loop.time, tell=self.tell)
        cluster.router_names = self.router_names
        cluster.announce = self._announce
        cluster.poisoned = self._poisoned
        asks = self.life.asks
        cluster.poisonous = {prompt_hash(a) for a in asks if a.poison is Poison.KILLS}
        cluster.raising = {prompt_hash(a) for a in asks if a.poison is Poison.RAISES}
        return cluster

    def _count_bursts(self) -> None:
        """Requests of the same instant."""
        moments = Counter(ask.at for ask in self.life.asks)
        self.strikes["burst"] = sum(count >= 3 for count in moments.values())

    def _rng(self, purpose: str) -> random.Random:
        """Each has its own luck, so that a change in one leaves the others as they were."""
        return random.Random(f"{self.life.seed}/{purpose}")

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
        faults = enumerate(self.life.faults)
        await asyncio.gather(*(self._strike(i, fault) for i, fault in faults))
        self.tell("the last fault is over")
        last_fault_at = self.loop.time()
        busy_until = 1001.0 + max((ask.at for ask in self.life.asks), default=0.0)
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
        await client.run(self.routers)
        self.tell("client", client.ask.name, *sorted(client.outcomes.elements()))

    async def _strike(self, number: int, fault: Fault) -> None:
        rng = self._rng(f"fault {number}")
        if fault in ANY_TIME:
            await asyncio.sleep(rng.uniform(0.8, 1.0 + BUSY_SECONDS))
        await fault(self, rng)

    def start_router(self, host: RouterHost) -> None:
        host.num_lives += 1
        host.router = Router(
            host.name,
            self.network,
            rng=self._rng(f"router {host.name} {host.num_lives}"),
            life=self.life,
            workers=tuple(host.address for host in self.hosts[: self.life.num_static]),
            struck=self.struck,
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
        router = self._routers[name].router
        if router is None or any(
            self.network.is_blocked(name, address, way) for way in ("up", "down")
        ):
            return None
        router.dispatcher.add_worker(address)
        return name

    def _poisoned(self, process: Process) -> None:
        self.struck("poison kills")
        for host in self.routers:
            if host.router is not None:
                host.router.poison.brought_down(process, self.loop.time())

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

    def strike(self, kind: str, *what: object) -> None:
        """A fault does."""
        self.tell("fault:", kind, *what)
        self.struck(kind)

    def struck(self, kind: str) -> None:
        """It counts among what happened."""
        self.strikes[kind] += 1

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def sent(self, wire: Wire, message: pb.RouterMessage) -> None:
        submit, router = message.submit, self._router(wire)
        kind = message.WhichOneof("message")
        if kind == "submit":
            self.tell(wire, "<- submit", submit.request_id, submit.attempt, submit.num_delivered)
        if router is None:
            return
        try:
            if kind == "submit":
                router.submitted(wire, submit)
            elif kind == "snapshot_request":
                self.struck("snapshot is asked for")
                router.trees.asked(wire, self.loop.time())
        except Exception as error:
            self.violated(error)  # in the middle of production's code, which it must not reach

    def heard(self, wire: Wire, message: pb.WorkerMessage) -> None:
        self.num_steps += 1
        if message.HasField("step"):
            step = message.step
            if step.outputs or step.HasField("cache"):
                outputs = [f"{o.request_id}@{o.position}" for o in step.outputs]
                self.tell(wire, "-> step", step.step, f"events {step.cache.seq}", *outputs)
        else:
            self.tell(wire, "->", message.WhichOneof("message"))
        if (router := self._router(wire)) is not None:
            try:
                router.heard(wire, message)
            except Exception as error:
                self.violated(error)  # in the middle of production's code, which it must not reach

    def _router(self, wire: Wire) -> Router | None:
        return self._routers[wire.router].router

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


def collect_rarely() -> None:
    """Most of what a life leaves goes without the collector, which looks through all modules."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def run_seed(seed: int, *, echo: Callable[[str], None] | None = None) -> Verdict:
    """Live through one seed."""
    return run_life(draw_life(seed), echo=echo)


def run_life(life: Life, *, echo: Callable[[str], None] | None = None) -> Verdict:
    """Live through it, and judge."""
    began_at = time.process_time()
    loop = VirtualLoop()
    world = World(life, loop, echo=echo)
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
        seed=life.seed,
        violation=world.violation,
        digest=world.digest,
        outcomes=sum((client.outcomes for client in world.clients), Counter()),
        struck=world.strikes,
        traits=Counter(life.traits),
        features=Counter(features(life.asks)),
        num_steps=world.num_steps,
        virtual_seconds=loop.time() - 1000.0,
        cpu_seconds=time.process_time() - began_at,
        trace=tuple(world.trace) if world.violation else (),
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
