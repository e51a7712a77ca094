"""Cache events that get lost, twice, late, out of order or wrong: the view heals, and cheaply.

The real page caches of the worker, the real feed and tree of the router, a wire of values between.
"""

import random
from collections import deque
from collections.abc import Callable

import pytest
from corrupt_events import corrupted
from routing_helpers import worker_spec
from true_cache import PAGE_TOKENS, TrueCache

from preble.events import CacheEvents, CacheSnapshot, SnapshotRequest
from preble.page_keys import KEY_BYTES
from preble.types import LoadReport
from preble_router.event_feed import RETRY_SECONDS
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    Event,
    RouteRequest,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
)
from preble_router.worker_view import WorkerView

STEP_SECONDS = 0.1
TRAVEL_SECONDS = 0.02
HEAL_SECONDS = 2.0
FAULTS = ("drop", "duplicate", "reorder", "corrupt", "delay")


class Wire:
    """One worker, its stream to the router, and the faults on it."""

    def __init__(self, name: str, send: Callable[[Event], None], *, seed: int) -> None:
        self.name = name
        self.rng = random.Random(seed)
        self.epoch = 1
        self.cache = TrueCache(200, epoch=1, rng=self.rng)
        self.digest = (0, 0)
        self.fault_share = 0.0
        self.num_faults = 0
        self.num_asked: list[float] = []
        self._send = send
        self._asks: deque[tuple[float, SnapshotRequest]] = deque()
        self._late: list[tuple[float, CacheEvents]] = []
        self._swapped: CacheEvents | None = None
        self.num_numbers = 0
        self._last_number = 0

    def join(self) -> None:
        spec = worker_spec(self.name, epoch=self.epoch)
        self._send(WorkerJoined(spec))
        self._send(SnapshotReceived(self.name, self.cache.pages.snapshot()))

    def ask(self, request: SnapshotRequest, now: float) -> None:
        """A question on its way; a new one only after the last was answered or given up."""
        if request.number != self._last_number:
            self.num_numbers += 1
            self._last_number = request.number
        elif self.num_asked:
            assert now - self.num_asked[-1] >= RETRY_SECONDS
        self.num_asked.append(now)
        self._asks.append((now + TRAVEL_SECONDS, request))

    def step(self, now: float, *, busy: bool) -> None:
        """One step, and what it says."""
        if busy:
            self.cache.serve(now=now)
        for at, batch in [late for late in self._late if late[0] <= now]:
            self._late.remove((at, batch))
            self._send(CacheChanged(self.name, batch))
        while self._asks and self._asks[0][0] <= now:
            self._answer(self._asks.popleft()[1], now)
        self._say_events(now)
        load = LoadReport(tree_pages=self.digest[0], tree_key_sum=self.digest[1])
        self._send(StepReport(worker_id=self.name, load=load))

    def restart_cache(self) -> None:
        """Another epoch on the same stream."""
        self.epoch += 1
        self.cache = TrueCache(200, epoch=self.epoch, rng=self.rng)

    def lose_next(self) -> None:
        self.cache.drain()
        self.digest = self.cache.digest
        self.num_faults += 1

    def _answer(self, request: SnapshotRequest, now: float) -> None:
        self._say_events(now)
        if self.rng.random() >= self.fault_share:
            snapshot = self.cache.pages.snapshot(request)
            self._send(SnapshotReceived(self.name, snapshot))
            if self.rng.random() < self.fault_share:
                self._send(SnapshotReceived(self.name, snapshot))
        else:
            self.num_faults += 1

    def _say_events(self, now: float) -> None:
        batch = self.cache.drain()
        self.digest = self.cache.digest
        if batch is None:
            return
        for fault in FAULTS:
            if self.rng.random() < self.fault_share:
                self.num_faults += 1
                self._say_wrongly(fault, batch, now)
                return
        self._say(batch)

    def _say_wrongly(self, fault: str, batch: CacheEvents, now: float) -> None:
        match fault:
            case "duplicate":
                self._say(batch)
                self._say(batch)
            case "reorder":
                self._swapped = batch
            case "corrupt":
                self._say(corrupted(batch, self.rng))
            case "delay":
                self._late.append((now + self.rng.uniform(0.1, 1.0), batch))

    def _say(self, batch: CacheEvents) -> None:
        self._send(CacheChanged(self.name, batch))
        if self._swapped is not None:
            swapped, self._swapped = self._swapped, None
            self._send(CacheChanged(self.name, swapped))


class Cluster:
    """A router's scheduler over faulty wires, in virtual time."""

    def __init__(self, *, num_workers: int, seed: int) -> None:
        self.now = 0.0
        self.scheduler = GlobalScheduler(make_policy("longest_prefix"), rng=random.Random(seed))
        self.wires = [Wire(f"w{i}", self._observe, seed=seed * 100 + i) for i in range(num_workers)]
        for wire in self.wires:
            wire.join()

    def _observe(self, event: Event) -> None:
        self.scheduler.observe(event, now=self.now)

    def run(self, seconds: float, *, busy: bool = True) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_SECONDS
            for wire in self.wires:
                wire.step(self.now, busy=busy)
            for action in self.scheduler.tick(now=self.now):
                wire = next(w for w in self.wires if w.name == action.worker_id)
                wire.ask(action.request, self.now)

    def view(self, wire: Wire) -> WorkerView:
        return next(v for v in self.scheduler.workers() if v.worker_id == wire.name)

    def assert_true(self) -> None:
        """The view is what the caches hold, page by page: as many, and every leaf is there."""
        self.scheduler.check()
        for wire in self.wires:
            view = self.view(wire)
            assert view.synced and (view.held_pages, view.held_key_sum) == wire.cache.digest
            for path in wire.cache.leaves():
                num_tokens = len(path) // KEY_BYTES * PAGE_TOKENS
                route = RouteRequest(
                    request_id="probe", page_keys=path, num_tokens=num_tokens + 1, max_tokens=1
                )
                terms = self.scheduler.explain(route, now=self.now).candidates
                cached = {term.worker_id: term.cached_tokens for term in terms}
                assert cached[wire.name] == num_tokens


def test_ten_minutes_of_every_fault_heal_within_two_seconds() -> None:
    cluster = Cluster(num_workers=3, seed=1)
    for wire in cluster.wires:
        wire.fault_share = 0.01
    for minute in range(10):
        cluster.run(59.0)
        wire = cluster.wires[minute % 3]
        if minute % 2:
            wire.cache.clear()
        else:
            wire.restart_cache()
        cluster.run(1.0)
    for wire in cluster.wires:
        wire.cache.serve(now=cluster.now)
        wire.lose_next()
        wire.fault_share = 0.0
    cluster.run(HEAL_SECONDS, busy=False)
    cluster.assert_true()
    views = [cluster.view(wire) for wire in cluster.wires]
    num_faults = sum(wire.num_faults for wire in cluster.wires)
    num_asked = sum(len(wire.num_asked) for wire in cluster.wires)
    assert num_faults > 500
    assert num_asked <= num_faults, "no more questions than faults"
    differences = sum(view.differences_total for view in views)
    assert differences > 5 * sum(view.snapshots_total - 1 for view in views)


@pytest.mark.parametrize("fault", [*FAULTS, "last", "clear", "epoch"])
def test_each_fault_heals_within_two_seconds(fault: str) -> None:
    cluster = Cluster(num_workers=2, seed=7)
    cluster.run(10.0)
    wire = cluster.wires[0]
    for busy in (True, False):
        for _ in range(10):
            if fault == "last":
                wire.cache.serve(now=cluster.now)
                wire.lose_next()
            elif fault == "clear":
                wire.cache.clear()
            elif fault == "epoch":
                wire.restart_cache()
            else:
                wire.cache.serve(now=cluster.now)
                batch = wire.cache.drain()
                wire.digest = wire.cache.digest
                if batch is not None:
                    wire._say_wrongly(fault, batch, cluster.now)
            cluster.run(HEAL_SECONDS, busy=busy)
            cluster.assert_true()


def test_without_faults_nobody_is_asked() -> None:
    cluster = Cluster(num_workers=3, seed=3)
    cluster.run(60.0)
    cluster.assert_true()
    assert not any(wire.num_asked for wire in cluster.wires)


def test_a_repair_sends_a_small_part_of_a_snapshot() -> None:
    rng = random.Random(5)
    cache = TrueCache(20_000, epoch=1, rng=rng)
    scheduler = GlobalScheduler(make_policy("longest_prefix"), rng=random.Random(0))
    for _ in range(2000):
        cache.serve(now=0.0)
    scheduler.observe(WorkerJoined(worker_spec("a")), now=0.0)
    cache.drain()
    whole = cache.pages.snapshot()
    scheduler.observe(SnapshotReceived("a", whole), now=0.0)
    cache.serve(now=1.0)
    cache.drain()
    load = LoadReport(tree_pages=cache.digest[0], tree_key_sum=cache.digest[1])
    scheduler.observe(StepReport(worker_id="a", load=load), now=1.0)
    (ask,) = scheduler.tick(now=2.0)
    repair = cache.pages.snapshot(ask.request)
    assert repair.is_difference and _size(repair) * 50 < _size(whole)
    scheduler.observe(SnapshotReceived("a", repair), now=2.1)
    (view,) = scheduler.workers()
    assert view.synced and (view.held_pages, view.held_key_sum) == cache.digest


def _size(snapshot: CacheSnapshot) -> int:
    return sum(map(len, snapshot.paths))
