"""A worker whose speed nobody knows gets little, and a slow one is tried again."""

import random

from routing_helpers import route, synced_scheduler, worker_spec

from preble.events import CacheSnapshot
from preble.types import LoadReport
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    Progress,
    RequestFinished,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
    WorkerLost,
    WorkerSuspended,
)


def step(
    scheduler: GlobalScheduler,
    worker_id: str,
    *,
    now: float,
    seconds: float = 0.01,
    predicted: float = 0.01,
    progress: tuple[Progress, ...] = (),
    busy: bool = False,
) -> None:
    load = LoadReport(free_pages=10_000, num_running=int(busy))
    report = StepReport(
        worker_id=worker_id,
        load=load,
        step_seconds=seconds,
        predicted_step_seconds=predicted,
        progress=progress,
    )
    scheduler.observe(report, now=now)


def join(scheduler: GlobalScheduler, worker_id: str, *, now: float) -> None:
    scheduler.observe(WorkerJoined(worker_spec(worker_id)), now=now)
    scheduler.observe(SnapshotReceived(worker_id, CacheSnapshot(1, 0, ())), now=now)


def place(scheduler: GlobalScheduler, count: int, *, now: float) -> list[str]:
    """Where new prompts of 1,600 tokens go that nobody has cached."""
    start = scheduler.tree_summary().live_requests
    rng = random.Random(start)
    return [
        scheduler.place(route(f"p{start + i}", rng.randbytes(800)), now=now).worker_id
        for i in range(count)
    ]


def fleet_at_work(policy: str = "preble") -> GlobalScheduler:
    scheduler = synced_scheduler(policy, ["a", "b"])
    for index in range(20):
        for worker_id in ("a", "b"):
            step(scheduler, worker_id, now=0.02 * index)
    return scheduler


def test_a_new_worker_gets_one_request_and_one_more_for_each_step_it_shows() -> None:
    for policy in ("preble", "least_loaded", "longest_prefix"):
        scheduler = fleet_at_work(policy)
        join(scheduler, "new", now=1.0)
        placed = place(scheduler, 60, now=1.0)
        assert placed.count("new") <= 1, policy
        for index in range(3):
            step(scheduler, "new", now=1.1 + 0.01 * index, busy=True)
        placed += place(scheduler, 60, now=1.2)
        assert placed.count("new") <= 4, policy
        for index in range(16):
            step(scheduler, "new", now=1.3 + 0.01 * index, busy=True)
        placed += place(scheduler, 300, now=1.5)
        assert placed.count("new") > 20, policy
        scheduler.check()


def test_workers_that_start_together_have_no_limit() -> None:
    placed = place(synced_scheduler("preble", ["a", "b", "c"]), 30, now=0.0)
    assert {placed.count(worker_id) for worker_id in "abc"} == {10}


def test_a_new_worker_takes_everything_where_there_is_no_other() -> None:
    scheduler = fleet_at_work()
    join(scheduler, "new", now=1.0)
    scheduler.observe(WorkerLost("a"), now=1.0)
    scheduler.observe(WorkerSuspended("b", True), now=1.0)
    assert place(scheduler, 20, now=1.0) == ["new"] * 20
    scheduler.check()


def slow_worker(scheduler: GlobalScheduler) -> None:
    """`a` takes ten times as long for a second, then nobody has anything to do."""
    placed = scheduler.place(route("r"), now=1.0)
    for index in range(10):
        step(scheduler, "a", seconds=0.1, now=1.0 + 0.1 * index, busy=True)
        for part in range(10):
            step(scheduler, "b", now=1.0 + 0.1 * index + 0.01 * part, busy=True)
    scheduler.observe(RequestFinished("r", placed.attempt, 1), now=2.0)


def idle(scheduler: GlobalScheduler, *, since: float, seconds: float) -> None:
    """Heartbeats of all."""
    for index in range(int(seconds / 0.4) + 1):
        for worker_id in ("a", "b"):
            step(scheduler, worker_id, seconds=0.0, predicted=0.0, now=since + 0.4 * index)


def test_a_slow_worker_is_tried_again_with_one_request() -> None:
    scheduler = fleet_at_work()
    slow_worker(scheduler)
    assert "a" not in place(scheduler, 3, now=2.0)
    for index in range(3):
        scheduler.observe(RequestFinished(f"p{index}", 1, 5), now=2.0)
    idle(scheduler, since=2.0, seconds=20.0)
    assert place(scheduler, 60, now=22.0).count("a") == 1
    for index in range(20):  # It has come right.
        step(scheduler, "a", now=22.1 + 0.01 * index, busy=True)
    assert place(scheduler, 60, now=22.5).count("a") > 20
    scheduler.check()


def test_a_worker_that_is_still_slow_is_left_alone_again() -> None:
    scheduler = fleet_at_work()
    slow_worker(scheduler)
    idle(scheduler, since=2.0, seconds=20.0)
    placed = place(scheduler, 20, now=22.0)
    assert placed.count("a") == 1
    for index in range(20):
        scheduler.observe(RequestFinished(f"p{index}", 1, 5), now=22.1)
    for index in range(20):
        step(scheduler, "a", seconds=0.1, now=22.1 + 0.1 * index, busy=True)
        step(scheduler, "b", now=22.1 + 0.1 * index, busy=True)
    assert "a" not in place(scheduler, 3, now=24.5)


def test_what_a_busy_worker_showed_does_not_fade() -> None:
    scheduler = fleet_at_work()
    slow_worker(scheduler)
    before = scheduler.workers()[0].speed_ratio
    for index in range(50):
        step(scheduler, "a", seconds=0.0, predicted=0.0, now=2.0 + 0.4 * index, busy=True)
    assert scheduler.workers()[0].speed_ratio == before > 3.0


def test_a_pause_is_not_a_pace() -> None:
    scheduler = fleet_at_work()
    step(scheduler, "a", seconds=14.0, now=15.0, busy=True)
    assert scheduler.workers()[0].speed_ratio < 1.4
