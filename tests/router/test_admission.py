"""Who is let in under overload: predicted waits against what requests can wait for."""

import asyncio
import random
import time

import pytest
from fake_worker import FakeWorker
from router_helpers import assert_exact, cluster, generation_request, until
from routing_helpers import route, synced_scheduler, worker_spec

from preble.errors import Overloaded
from preble.events import CacheSnapshot
from preble_router.admission import Correction
from preble_router.journal import Journal, placements, replay
from preble_router.loop_turn import TURN_SECONDS
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    Progress,
    RequestFinished,
    RouteRequest,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
)


def prompt(request_id: str, *, num_tokens: int = 4000, **fields: object) -> RouteRequest:
    return RouteRequest(
        request_id=request_id,
        page_keys=random.Random(request_id).randbytes(num_tokens // 16 * 8),
        num_tokens=num_tokens,
        max_tokens=10,
        **fields,  # type: ignore[arg-type]
    )


def queue_up(scheduler: GlobalScheduler, count: int, *, now: float = 0.0) -> None:
    for i in range(count):
        scheduler.place(prompt(f"queued{i}"), now=now)


def last_admitted(scheduler: GlobalScheduler, **fields: object) -> int:
    """How many requests like the `queued` ones get in before one does not."""
    for count in range(1000):
        try:
            scheduler.place(prompt(f"x{count}", **fields), now=0.0)
        except Overloaded:
            return count
    raise AssertionError("nobody is ever refused")


def test_without_a_time_nobody_is_refused() -> None:
    scheduler = synced_scheduler("preble", ["w0"])
    queue_up(scheduler, 500)
    scheduler.check()
    assert not scheduler.admission.refusals


@pytest.mark.parametrize("policy", ["preble", "round_robin", "least_loaded", "e2"])
def test_a_queue_is_filled_as_far_as_the_time_goes(policy: str) -> None:
    short = last_admitted(synced_scheduler(policy, ["w0", "w1"]), deadline_at=2.0)
    long = last_admitted(synced_scheduler(policy, ["w0", "w1"]), deadline_at=8.0)
    assert short >= 4 and 3 * short <= long <= 5 * short


def test_the_refusal_says_when_to_come_again() -> None:
    scheduler = synced_scheduler("preble", ["w0"])
    queue_up(scheduler, 40)
    with pytest.raises(Overloaded) as refused:
        scheduler.place(prompt("late", start_by=1.0), now=0.0)
    scheduler.check()
    again = refused.value.retry_after_seconds
    assert 1.0 < again < 60.0
    assert scheduler.admission.refusals == {"queue": 1}
    with pytest.raises(Overloaded):
        scheduler.place(prompt("soon", start_by=again), now=0.0)
    scheduler.place(prompt("then", start_by=1.1 + again), now=0.0)


def test_an_idle_worker_takes_whatever_comes() -> None:
    scheduler = synced_scheduler("preble", ["w0", "w1"])
    scheduler.place(prompt("a", num_tokens=30_000, deadline_at=0.001), now=0.0)
    scheduler.place(prompt("b", num_tokens=30_000, deadline_at=0.001), now=0.0)
    with pytest.raises(Overloaded):
        scheduler.place(prompt("c", num_tokens=30_000, deadline_at=0.001), now=0.0)


def test_a_choice_that_would_be_late_gives_way_to_one_in_time() -> None:
    scheduler = synced_scheduler("longest_prefix", ["w0", "w1"])
    first = scheduler.place(prompt("same"), now=0.0)
    for i in range(30):
        longer = prompt("same").page_keys + random.Random(i).randbytes(800)
        scheduler.place(route(f"r{i}", longer), now=0.0)
    like = prompt("same")
    asked = RouteRequest(
        request_id="hasty",
        page_keys=like.page_keys,
        num_tokens=like.num_tokens,
        max_tokens=10,
        deadline_at=1.0,
    )
    placement = scheduler.place(asked, now=0.0)
    assert placement.worker_id != first.worker_id
    assert placement.reason.startswith("in time")


def test_later_attempts_are_not_refused() -> None:
    scheduler = synced_scheduler("preble", ["w0"])
    scheduler.place(prompt("r", deadline_at=1.0), now=0.0)
    queue_up(scheduler, 100)
    again = scheduler.place(prompt("r", attempt=2, deadline_at=1.0), now=0.5)
    assert again.worker_id == "w0"


def test_what_was_predicted_wrongly_is_corrected() -> None:
    scheduler = synced_scheduler("preble", ["w0"])
    before = last_admitted(synced_scheduler("preble", ["w0"]), start_by=2.0)
    for i in range(60):  # Each takes four times as long as it should.
        placed = prompt(f"slow{i}")
        at = 10.0 * i
        scheduler.place(placed, now=at)
        progress = (Progress(placed.request_id, 1, 1, 0),)
        report = StepReport(worker_id="w0", load=scheduler.workers()[0].load, progress=progress)
        scheduler.observe(report, now=at + 1.0)
        scheduler.observe(RequestFinished(placed.request_id, 1, 1), now=at + 1.0)
    scheduler.check()
    assert last_admitted(scheduler, start_by=2.0) <= 0.7 * before


def test_a_correction_is_the_ratio_and_its_spread() -> None:
    exact, scattered = Correction(), Correction()
    for i in range(400):
        exact.observe(predicted=1.0, actual=2.0)
        scattered.observe(predicted=1.0, actual=1.0 if i % 2 else 3.0)
    assert exact.bound == pytest.approx(2.0, rel=0.05)
    assert scattered.bound == pytest.approx(4.0, rel=0.1)


def test_what_was_given_up_early_teaches_nothing() -> None:
    correction = Correction()
    correction.observe_at_least(predicted=5.0, elapsed=1.0)
    assert correction.bound == 1.0
    correction.observe_at_least(predicted=1.0, elapsed=5.0)
    assert correction.bound > 1.5


def test_a_replayed_journal_refuses_the_same() -> None:
    lines: list[dict[str, object]] = []
    scheduler = Journal(lines.append).start(make_policy("preble"), rng=random.Random(3))
    scheduler.observe(WorkerJoined(worker_spec("w0")), now=0.0)
    scheduler.observe(SnapshotReceived("w0", CacheSnapshot(1, 0, ())), now=0.0)
    assert 0 < last_admitted(scheduler, deadline_at=2.0) < 100
    assert replay(lines) == placements(lines)


# At the dispatcher


async def test_overload_is_refused_at_once_and_counted() -> None:
    worker = FakeWorker(step_seconds=0.05)
    async with cluster(worker, max_queue_seconds=0.001) as dispatcher:
        first = dispatcher.start(generation_request("first"))
        with pytest.raises(Overloaded):
            dispatcher.start(generation_request("second"))
        with pytest.raises(Overloaded):
            dispatcher.check_admission()
        assert dispatcher.num_live == 1
        assert dispatcher.status().refusals["queue"] == 1
        await assert_exact(first)
        await until(lambda: dispatcher.num_live == 0)
        dispatcher.check_admission()


async def test_what_comes_in_one_turn_is_looked_at_for_so_long_only() -> None:
    async with cluster(FakeWorker()) as dispatcher:
        dispatcher.check_turn()
        dispatcher.check_turn()
        time.sleep(1.1 * TURN_SECONDS)  # noqa: ASYNC251 - the loop is to stand still.
        with pytest.raises(Overloaded):
            dispatcher.check_turn()
        assert dispatcher.status().refusals == {"router": 1}
        dispatcher.check_turn(timeout_seconds=100.0)  # A second more or less makes it not late.
        await asyncio.sleep(0)
        dispatcher.check_turn()


async def test_a_request_without_a_timeout_gets_the_default_one() -> None:
    worker = FakeWorker()
    async with cluster(worker, default_timeout_seconds=30.0) as dispatcher:
        await assert_exact(dispatcher.start(generation_request()))
        assert 29.0 < worker.submits[0].deadline_seconds <= 30.0


def test_a_high_priority_waits_only_for_its_like() -> None:
    scheduler = synced_scheduler("preble", ["w0"])
    queue_up(scheduler, 60)
    with pytest.raises(Overloaded):
        scheduler.check_wait(latest_at=1.0, now=0.0)
    scheduler.check_wait(latest_at=1.0, priority=1, now=0.0)
    with pytest.raises(Overloaded):
        scheduler.place(prompt("low", priority=-1, deadline_at=1.0), now=0.0)
    admitted = last_admitted(scheduler, priority=1, deadline_at=2.0)
    scheduler.check()
    assert admitted == pytest.approx(
        last_admitted(synced_scheduler("preble", ["w0"]), deadline_at=2.0), abs=1
    )


def test_priority_says_among_whom_it_goes_where_it_waits_least() -> None:
    scheduler = synced_scheduler("preble", ["w0", "w1"])
    low = scheduler.place(prompt("low", num_tokens=20_000), now=0.0)
    high = scheduler.place(prompt("high", num_tokens=8_000, priority=5), now=0.0)
    assert high.worker_id != low.worker_id
    # The longer queue has nothing before it there, the shorter one has.
    third = scheduler.place(prompt("higher", num_tokens=320, priority=5), now=0.0)
    assert third.worker_id == low.worker_id
    scheduler.check()


# Where workers share fairly


def flood(policy: str, *, count: int = 200) -> GlobalScheduler:
    """Two workers with so many requests of one tenant in their queues."""
    scheduler = synced_scheduler(policy, ["w0", "w1"])
    for i in range(count):
        scheduler.place(prompt(f"a{i}", tenant="greedy"), now=0.0)
    return scheduler


def test_a_tenant_is_not_refused_for_the_backlog_of_another() -> None:
    scheduler = flood("d2lpm")
    scheduler.check_wait(latest_at=1.0, tenant="steady", now=0.0)
    scheduler.place(prompt("b", tenant="steady", deadline_at=2.0), now=0.0)
    with pytest.raises(Overloaded):
        scheduler.check_wait(latest_at=1.0, tenant="greedy", now=0.0)
    with pytest.raises(Overloaded):
        scheduler.place(prompt("c", tenant="greedy", deadline_at=2.0), now=0.0)
    scheduler.check()
    unfair = flood("longest_prefix")
    with pytest.raises(Overloaded):
        unfair.check_wait(latest_at=1.0, tenant="steady", now=0.0)


def test_of_others_as_much_is_before_a_request_as_of_its_own_tenant() -> None:
    """So of two tenants each gets half as many in as one alone, of three fewer."""

    def admitted(*others: str) -> int:
        scheduler = synced_scheduler("d2lpm", ["w0"])
        for tenant in others:
            for i in range(200):
                scheduler.place(prompt(f"{tenant}{i}", tenant=tenant), now=0.0)
        count = last_admitted(scheduler, tenant="own", deadline_at=8.0)
        scheduler.check()
        return count

    assert admitted("a") == pytest.approx(admitted() / 2, rel=0.2)
    assert 0 < admitted("a", "b") < 0.75 * admitted("a")


def test_a_higher_priority_is_before_all_tenants() -> None:
    scheduler = synced_scheduler("d2lpm", ["w0"])
    for i in range(60):
        scheduler.place(prompt(f"a{i}", tenant="a", priority=1), now=0.0)
    with pytest.raises(Overloaded):
        scheduler.check_wait(latest_at=1.0, tenant="b", now=0.0)
    scheduler.check_wait(latest_at=1.0, tenant="b", priority=1, now=0.0)
    scheduler.check_wait(latest_at=1.0, tenant="a", priority=2, now=0.0)
