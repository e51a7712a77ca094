"""Worker processes in virtual time: the service, the step loop and the scheduler are production's.

What is missing of a real one: the thread, the sockets, and the sleeps of the simulated engine,
which are the virtual loop's here.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from pretend_logprobs import pretend_logprobs
from vopr.network import Network, Wire
from vopr.violation import Violation

from preble.cost import CostModel
from preble.page_keys import pack_tokens
from preble.types import WorkerSpec
from preble.wire import hello_to_wire
from preble_worker.announce import Announcement, Announcer
from preble_worker.batch import Batch, predicted_seconds, seconds_with_copies
from preble_worker.config import SchedulerConfig
from preble_worker.loop_messages import (
    Command,
    Delivery,
    Drain,
    Drained,
    EngineFailed,
    LoopReport,
    SnapshotTaken,
    Stop,
)
from preble_worker.scheduler import LocalScheduler
from preble_worker.server import LAG_POLL_SECONDS
from preble_worker.service import WorkerService
from preble_worker.simulated_tokens import TokenSource
from preble_worker.step_loop import StepLoop

MODEL = "sim"
VOCAB_SIZE = 1000
COST = CostModel(
    name="vopr",
    fixed=0.02,
    per_prefill_token=4e-5,
    per_attention=0.0,
    per_decode=2e-4,
    per_context_token=0.0,
)
DRAIN_SECONDS = 4.0


class EngineBroke(Exception):
    """What a step of an engine raises on request."""


class Died(Exception):
    """The process is gone, in the middle of a step."""


class Cluster:
    """What worker processes need of the world."""

    def __init__(
        self,
        network: Network,
        rng: random.Random,
        *,
        now: Callable[[], float],
        tell: Callable[..., None],
    ) -> None:
        self.network = network
        self.now = now
        self.rng = rng
        self.tell = tell
        self.poisonous: set[int] = set()  # prompt hashes that bring a process down
        self.raising: set[int] = set()  # and those on which an engine raises
        self.poisoned: Callable[[Process], None] = lambda process: None
        self.announce: Callable[[str, str], str | None] = lambda router, address: None
        self.router_names: tuple[str, ...] = ()


class Host:
    """A place where one worker runs, and is started again when it has ended.

    Attributes:
        process: that runs now, None between two.
        slowness: of its engine, beside the cost model.
        failing_steps: so many of the next steps raise.
    """

    def __init__(self, name: str, cluster: Cluster, *, config: SchedulerConfig) -> None:
        self.name = name
        self.cluster = cluster
        self.config = config
        self.port = 1
        self.process: Process | None = None
        self.slowness = 1.0
        self.failing_steps = 0
        self.restart_seconds = 0.5
        self.wall_clock_offset = 0.0
        self.clock_offset = cluster.rng.uniform(0.0, 1e5)
        self.starting: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"{self.name}:{self.port}"

    def clock(self) -> float:
        """Monotonic seconds of this machine, which agree with no other's."""
        return self.cluster.now() + self.clock_offset

    def start(self) -> None:
        assert self.process is None
        self.process = Process(self, self._new_epoch())
        self.cluster.network.listening[self.address] = self.process
        self.cluster.tell("start", self.name, self.port)

    def kill(self) -> None:
        """At once, as by SIGKILL; something starts it again."""
        if self.process is not None:
            process, self.process = self.process, None
            self.cluster.tell("dead", self.name)
            process.end()
            self._start_later()

    def move(self) -> "Process | None":
        """It is started again at another address while the former process, unreachable, lives."""
        process, self.process = self.process, None
        self.port += 1
        if process is not None:
            self._start_later()
        return process

    def exited(self, process: "Process") -> None:
        """It has ended by itself."""
        if self.process is process:
            self.kill()
        else:
            process.end()

    def _start_later(self) -> None:
        task = asyncio.create_task(self._start_in(self.restart_seconds), name=f"start {self.name}")
        self.starting.add(task)
        task.add_done_callback(self.starting.discard)

    async def _start_in(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.start()

    def _new_epoch(self) -> int:
        wall = self.cluster.now() + 1.7e9 + self.wall_clock_offset
        return int(wall * 1e6) << 12 | self.cluster.rng.getrandbits(12)


class Engine:
    """The tokens of the simulated engine; log probabilities tell one token and position from
    another. Time passes elsewhere."""

    def __init__(self) -> None:
        self._tokens = TokenSource(VOCAB_SIZE)

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        tokens: npt.NDArray[np.int64] = self._tokens.draw(batch)[0]
        if (columns := batch.logprobs) is not None:
            slots = batch.slots[batch.samples]
            for i, (row, num_top) in enumerate(zip(columns.rows, columns.num_top, strict=True)):
                position = int(batch.tables.output_position[slots[row]])
                of_token = pretend_logprobs(
                    pack_tokens([int(tokens[row])]), num_top, start=position, vocab_size=VOCAB_SIZE
                )
                columns.chosen[i] = np.frombuffer(of_token.chosen, np.float32)[0]
                columns.top_tokens[i, :num_top] = np.frombuffer(of_token.top_tokens, np.uint32)
                columns.top[i, :num_top] = np.frombuffer(of_token.top, np.float32)
        return tokens


class Process:
    """One life of a worker.

    Attributes:
        hangs: reasons for which its step loop stands still.
        reported: of each path it said it holds, all prefixes, for as long as it lives.
    """

    def __init__(self, host: Host, epoch: int) -> None:
        self.host = host
        self.address = host.address
        self.epoch = epoch
        self.is_alive = True
        self.hangs = 0
        self.scheduler = LocalScheduler(host.config, epoch=epoch)
        self.steps = StepLoop(self.scheduler, COST, deliver=self._deliver, clock=host.clock)
        self.service = WorkerService(
            hello_to_wire(self._spec(), version="0", engine="simulated"),
            post=self._post,
            drain=self._obey_drain,
            clock=host.clock,
        )
        self._engine = Engine()
        self._orphans: set[str] = set()
        self._wakeup = asyncio.Event()
        self._runs = asyncio.Event()
        self._runs.set()
        self._drained = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._announcer = VirtualAnnouncer(host.cluster, self)
        self._announcer.start()
        self.spawn(self._main(), "step loop")

    def spawn(self, work: Any, what: str) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(work, name=f"{what} of {self.address}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def accept(self, wire: Wire) -> "asyncio.Task[None]":
        """A router's stream."""
        wire.worker_id, wire.epoch = self.host.name, self.epoch
        return self.spawn(self.service.Link(wire, wire.context), f"link of {wire.router}")

    def hang(self) -> None:
        self.hangs += 1
        self._runs.clear()

    def unhang(self) -> None:
        self.hangs -= 1
        if not self.hangs:
            self._runs.set()

    def end(self) -> None:
        """Nothing of it is left."""
        self.is_alive = False
        self._announcer.end()
        network = self.host.cluster.network
        if network.listening.get(self.address) is self:
            del network.listening[self.address]
        for wire in network.between(None, self.address):
            if wire.epoch == self.epoch:
                wire.die()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def check(self) -> None:
        """Assert what production asserts, and that it computes for no router that is gone.

        To be called once a second or less often.
        """
        self.scheduler.check()
        self.service._book.check()
        orphans = self.scheduler._outbox.live.keys() - self.service._book._owners.keys()
        is_slow = self.hangs or self.host.slowness > 1.0
        if not is_slow and (left := orphans & self._orphans):
            raise Violation(f"{self.address} computes for nobody: {sorted(left)}")
        self._orphans = set() if is_slow else orphans

    @property
    def is_idle(self) -> bool:
        return not self.scheduler.num_live and not len(self.service._book)

    # The loop, whose thread is a task here.

    def _post(self, *commands: Command) -> None:
        self.steps.commands.extend(commands)
        self._wakeup.set()

    async def _main(self) -> None:
        try:
            while self.steps.obey():
                await self._turn()
                while self.service.lags:  # noqa: ASYNC110 - as the worker's server waits
                    await asyncio.sleep(LAG_POLL_SECONDS)
        except EngineFailed:
            self.host.cluster.tell("engine beyond hope", self.host.name)
        except Died:
            pass
        self.service.end_links()
        self.host.exited(self)

    async def _turn(self) -> None:
        await self._runs.wait()
        batch = self.steps.begin()
        if batch is None:
            await self._rest(self.steps.rest())
            return
        seconds = predicted_seconds(COST, batch)
        if batch.moves:
            seconds = seconds_with_copies(seconds, batch.moves, self.host.config.tiers)
        await asyncio.sleep(seconds * self.host.slowness)
        await self._runs.wait()
        try:
            tokens = self._run(batch)
        except EngineBroke as error:
            self.steps.fail(batch, error)
        else:
            self.steps.complete(batch, tokens)

    def _run(self, batch: Batch) -> npt.NDArray[np.int64]:
        host = self.host
        cluster = host.cluster
        if cluster.poisonous or cluster.raising:
            hashes = batch.tables.prompt_hash[batch.slots].tolist()
            if not cluster.poisonous.isdisjoint(hashes):
                cluster.tell("poisoned", host.name)
                cluster.poisoned(self)
                raise Died
            if not cluster.raising.isdisjoint(hashes):
                cluster.network.observer.struck("poison raises")
                raise EngineBroke
        if host.failing_steps:
            host.failing_steps -= 1
            raise EngineBroke
        return self._engine.run(batch)

    async def _rest(self, seconds: float) -> None:
        self._wakeup.clear()
        if not self.steps.commands:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wakeup.wait()

    def _deliver(self, delivery: Delivery) -> None:
        match delivery:
            case LoopReport() | SnapshotTaken():
                self.service.deliver(delivery)
            case Drained():
                self._drained.set()

    def _obey_drain(self, deadline_seconds: float | None) -> None:
        seconds = DRAIN_SECONDS if deadline_seconds is None else deadline_seconds
        self.spawn(self._stop(seconds), "stop")

    async def _stop(self, seconds: float) -> None:
        """As `WorkerServer.stop`."""
        self._post(Drain())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._drained.wait()
        self._post(Stop())

    def _spec(self) -> WorkerSpec:
        config = self.host.config
        return WorkerSpec(
            worker_id=self.host.name,
            epoch=self.epoch,
            model=MODEL,
            page_tokens=config.page_tokens,
            capacity_tokens=config.num_pages * config.page_tokens,
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            context_tokens=config.context_tokens,
            vocab_size=VOCAB_SIZE,
            cost=COST,
            host_capacity_tokens=config.host_capacity_tokens,
            host_token_seconds=config.host_token_seconds,
        )


class VirtualAnnouncer(Announcer):
    """Its calls go through the virtual network."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        host, _, port = process.address.rpartition(":")
        super().__init__(
            cluster.router_names,
            Announcement(host=host, port=int(port)),
            is_linked=process.service.is_linked,
            rng=random.Random(process.epoch),
        )
        self._cluster = cluster
        self._process = process

    def end(self) -> None:
        """At once."""
        for task in self._tasks:
            task.cancel()

    async def _announce(self, router: str) -> tuple[str | None, str]:
        await asyncio.sleep(0.001)
        if self._process.hangs:  # the whole process may be frozen
            return None, ""
        return self._cluster.announce(router, self._process.address), ""
