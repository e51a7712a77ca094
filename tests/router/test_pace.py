"""A cost model that is wrong for all workers must not make the first one used look slow."""

import pytest
from routing_helpers import route, synced_scheduler

from preble.events import CacheEvents, Stored
from preble.types import LoadReport
from preble_router.pace import FleetPace, Pace
from preble_router.stimuli import CacheChanged, Progress, RequestFinished, StepReport

FACTOR = 40.0
PATH = bytes(range(8)) * 17


def test_a_repeat_stays_with_its_cache_though_the_cost_model_is_wrong() -> None:
    scheduler = synced_scheduler("preble", ["a", "b"])
    first = scheduler.place(route("r0", PATH, max_tokens=256), now=1.0)
    worker = first.worker_id
    scheduler.observe(CacheChanged(worker, CacheEvents(1, 1, (Stored(PATH),))), now=1.5)
    load = LoadReport(free_pages=10_000, tree_pages=17, tree_key_sum=_key_sum())
    for step in range(20):
        report = StepReport(
            worker_id=worker,
            load=load,
            step_seconds=0.01 * FACTOR,
            predicted_step_seconds=0.01,
            progress=(Progress("r0", 1, 1, 0),),
        )
        scheduler.observe(report, now=1.5 + step)
    scheduler.observe(RequestFinished("r0", 1, output_tokens=20), now=30.0)
    for other in ("a", "b"):
        told = load if other == worker else LoadReport(free_pages=10_000)
        scheduler.observe(StepReport(worker_id=other, load=told), now=30.5)
    again = scheduler.place(route("r1", PATH, max_tokens=256), now=31.0)
    assert (again.worker_id, again.cached_tokens) == (worker, 17 * 16)
    scheduler.check()


def test_the_unmeasured_are_taken_to_be_like_the_measured() -> None:
    fleet = FleetPace()
    measured, unmeasured = Pace(fleet), Pace(fleet)
    assert unmeasured.ratio == 1.0
    for _ in range(50):
        measured.observe(0.4, 0.1)
    assert unmeasured.ratio == pytest.approx(4.0)


def test_a_slow_worker_shows_beside_a_fast_fleet() -> None:
    fleet = FleetPace()
    slow, fast = Pace(fleet), Pace(fleet)
    for _ in range(100):
        fast.observe(0.1, 0.1)
        slow.observe(0.3, 0.1)
        fast.observe(0.1, 0.1)
    assert slow.ratio > 2.0 > 1.5 > fast.ratio


def test_heartbeats_say_nothing_of_the_pace() -> None:
    pace = Pace(FleetPace())
    pace.observe(0.0, 0.0)
    pace.observe(0.5, 0.0)
    assert pace.ratio == 1.0


def _key_sum() -> int:
    return 17 * int.from_bytes(bytes(range(8)), "big") % 2**64
