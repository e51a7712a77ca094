"""Random histories, with loss, against a model that keeps plain sets of paths per worker."""

import random

import pytest
from routing_helpers import route, synced_scheduler, worker_spec

from preble.events import CacheEvent, CacheEvents, CacheSnapshot, Evicted, Stored
from preble.page_keys import KEY_BYTES, key_sum
from preble.types import LoadReport
from preble_router.policies import POLICY_NAMES
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    Progress,
    RequestFailed,
    RequestFinished,
    RequestSnapshot,
    RouteRequest,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
    WorkerLost,
)

WORKERS = ("a", "b", "c", "d")
KEYS = [bytes([letter]) * KEY_BYTES for letter in b"xyz"]
WINDOW_SECONDS = 20.0
EXPECTED_SECONDS = 3.0


def prefixes(path: bytes) -> set[bytes]:
    return {path[:end] for end in range(KEY_BYTES, len(path) + 1, KEY_BYTES)}


class TrueWorker:
    """What one worker really holds, and the batches it numbers."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.seq = 0
        self.held: set[bytes] = set()

    def batch(self, *events: CacheEvent) -> CacheEvents:
        self.seq += 1
        for event in events:
            if isinstance(event, Stored):
                self.held |= prefixes(event.path)
            elif event.keep * KEY_BYTES < len(event.path):
                gone = event.path[: (event.keep + 1) * KEY_BYTES]
                self.held = {path for path in self.held if not path.startswith(gone)}
        return CacheEvents(self.epoch, self.seq, events)

    def snapshot(self) -> CacheSnapshot:
        inner = {path[:-KEY_BYTES] for path in self.held}
        return CacheSnapshot(self.epoch, self.seq, tuple(sorted(self.held - inner)))

    def report(self, worker_id: str, *progress: Progress) -> StepReport:
        load = LoadReport(
            tree_pages=len(self.held),
            tree_key_sum=sum(key_sum(path[-KEY_BYTES:]) for path in self.held) % 2**64,
        )
        return StepReport(worker_id=worker_id, load=load, progress=progress)


class History:
    """A scheduler and its model, driven through the same random events."""

    def __init__(self, seed: int, policy: str, *, loss: float) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.scheduler: GlobalScheduler = synced_scheduler(
            policy,
            WORKERS,
            seed=seed,
            window_seconds=WINDOW_SECONDS,
            expected_seconds=EXPECTED_SECONDS,
        )
        self.workers = {worker_id: TrueWorker(epoch=1) for worker_id in WORKERS}
        self.live: dict[str, tuple[int, str]] = {}
        self.expected: dict[str, tuple[float, str, bytes]] = {}
        self.used: list[tuple[float, bytes]] = []
        self.num_requests = 0
        self.num_snapshots = 0

    def random_path(self) -> bytes:
        return b"".join(self.rng.choices(KEYS, weights=(6, 2, 1), k=self.rng.randrange(9)))

    def step(self) -> None:
        self.now += self.rng.choice((0.0, 0.01, 0.3))
        action = self.rng.choices(
            (
                self.place,
                self.store,
                self.evict,
                self.progress,
                self.end,
                self.retry,
                self.lose,
                self.join,
                self.deliver_spontaneous_snapshot,
            ),
            weights=(8, 6, 6, 5, 5, 2, 0.4, 1.5, 0.4),
        )[0]
        action()
        self.tick()
        self.scheduler.check()
        self.compare()

    def synced(self) -> set[str]:
        return {view.worker_id for view in self.scheduler.workers() if view.synced}

    # Events

    def place(self, request: RouteRequest | None = None) -> None:
        if not self.workers:
            return
        if request is None:
            self.num_requests += 1
            request = route(f"r{self.num_requests}", self.random_path())
        believed = self.cached_by_worker(request)
        known = self.synced()
        placement = self.scheduler.place(request, now=self.now)
        worker_id = placement.worker_id
        assert worker_id in self.workers
        if self.loss == 0.0 and worker_id in known:
            assert placement.cached_tokens == believed[worker_id]
        self.live[request.request_id] = (request.attempt, worker_id)
        until = self.now + EXPECTED_SECONDS
        self.expected[request.request_id] = (until, worker_id, request.page_keys)
        self.used.append((self.now, request.page_keys))

    def cached_by_worker(self, request: RouteRequest) -> dict[str, int]:
        tokens = {}
        for worker_id, worker in self.workers.items():
            warm = set(worker.held)
            for other, (_, where, path) in self.expected.items():
                if where == worker_id and other != request.request_id:
                    warm |= prefixes(path)
            mine = [len(p) for p in prefixes(request.page_keys) if p in warm]
            tokens[worker_id] = max(mine, default=0) // KEY_BYTES * 16
        return tokens

    def store(self) -> None:
        self.send(*(Stored(self.random_path()) for _ in range(self.rng.randrange(1, 3))))

    def evict(self) -> None:
        path = self.random_path()
        self.send(Evicted(path, self.rng.randrange(len(path) // KEY_BYTES + 1)))

    def send(self, *events: CacheEvent) -> None:
        """A batch from some worker, or its loss; the report after it may be lost too."""
        if not self.workers:
            return
        worker_id = self.rng.choice(sorted(self.workers))
        worker = self.workers[worker_id]
        batch = worker.batch(*events)
        if self.rng.random() >= self.loss:
            self.scheduler.observe(CacheChanged(worker_id, batch), now=self.now)
        if self.rng.random() >= self.loss:
            self.scheduler.observe(worker.report(worker_id), now=self.now)

    def progress(self) -> None:
        if self.live:
            request_id = self.rng.choice(sorted(self.live))
            attempt, worker_id = self.live[request_id]
            progress = Progress(request_id, attempt, 1, 16)
            report = self.workers[worker_id].report(worker_id, progress)
            self.scheduler.observe(report, now=self.now)
            self.expected.pop(request_id, None)

    def end(self) -> None:
        if self.live:
            request_id = self.rng.choice(sorted(self.live))
            attempt, _ = self.live.pop(request_id)
            self.expected.pop(request_id, None)
            event = self.rng.choice(
                (RequestFinished(request_id, attempt, 7), RequestFailed(request_id, attempt))
            )
            for _ in range(self.rng.choice((1, 2))):
                self.scheduler.observe(event, now=self.now)

    def retry(self) -> None:
        if self.live and self.workers:
            request_id = self.rng.choice(sorted(self.live))
            attempt, _ = self.live[request_id]
            self.expected.pop(request_id, None)
            self.place(route(request_id, self.random_path(), attempt=attempt + 1))

    def lose(self) -> None:
        worker_id = self.rng.choice(WORKERS)
        self.workers.pop(worker_id, None)
        for request_id in [r for r, (_, where) in self.live.items() if where == worker_id]:
            del self.live[request_id]
            self.expected.pop(request_id, None)
        self.scheduler.observe(WorkerLost(worker_id), now=self.now)

    def join(self) -> None:
        missing = [worker_id for worker_id in WORKERS if worker_id not in self.workers]
        if missing:
            worker_id = self.rng.choice(missing)
            worker = self.workers[worker_id] = TrueWorker(epoch=self.rng.randrange(2, 10**6))
            spec = worker_spec(worker_id, epoch=worker.epoch)
            self.scheduler.observe(WorkerJoined(spec), now=self.now)
            if self.rng.random() < 0.7:
                self.deliver_snapshot(worker_id)

    def deliver_spontaneous_snapshot(self) -> None:
        if self.workers:
            self.deliver_snapshot(self.rng.choice(sorted(self.workers)))

    def deliver_snapshot(self, worker_id: str) -> None:
        self.num_snapshots += 1
        snapshot = self.workers[worker_id].snapshot()
        self.scheduler.observe(SnapshotReceived(worker_id, snapshot), now=self.now)

    def tick(self) -> None:
        for action in self.scheduler.tick(now=self.now):
            assert isinstance(action, RequestSnapshot)
            if self.rng.random() >= self.loss:
                self.deliver_snapshot(action.worker_id)
        self.expected = {r: e for r, e in self.expected.items() if e[0] > self.now}

    # Comparison

    def compare(self) -> None:
        views = {view.worker_id: view for view in self.scheduler.workers()}
        assert set(views) == set(self.workers)
        for worker_id, view in views.items():
            live = [r for r, (_, where) in self.live.items() if where == worker_id]
            assert view.live_requests == len(live)
        if self.loss == 0.0 and all(view.synced for view in views.values()):
            for worker_id, view in views.items():
                assert view.held_pages == len(self.workers[worker_id].held)

    def compare_tree(self) -> None:
        """Every page in the tree is needed, and every needed page is there."""
        needed = set().union(*(worker.held for worker in self.workers.values()), set())
        for _, _, path in self.expected.values():
            needed |= prefixes(path)
        for at, path in self.used:
            if at > self.now - WINDOW_SECONDS:
                needed |= prefixes(path)
        assert self.scheduler.tree_summary().num_pages == len(needed)

    def settle(self) -> None:
        """Without further loss every view becomes the truth."""
        self.loss = 0.0
        for _ in range(200):
            self.now += 0.4
            for worker_id, worker in self.workers.items():
                self.scheduler.observe(worker.report(worker_id), now=self.now)
            self.tick()
        self.scheduler.check()
        assert self.synced() == set(self.workers)
        self.compare()
        self.compare_tree()


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_without_loss_the_view_is_the_truth_at_every_moment(policy: str) -> None:
    history = History(11, policy, loss=0.0)
    for index in range(600):
        history.step()
        if index % 100 == 99:
            history.now += 0.5
            history.tick()
            if len(history.synced()) == len(history.workers):
                history.compare_tree()
    history.settle()
    assert history.num_requests > 100


@pytest.mark.parametrize("seed", range(6))
def test_with_loss_the_view_becomes_the_truth(seed: int) -> None:
    history = History(seed, "preble", loss=0.2)
    for _ in range(400):
        history.step()
    assert history.num_snapshots > 5
    history.settle()
    assert all(view.snapshots_total for view in history.scheduler.workers())
