"""How the show of live local policies makes a simulated worker like the live one, and judges."""

import asyncio

import pytest
from shows.local_policies import Live, Outcome, chats, simulated
from shows.worker_pace import TimedStep, WorkerPace, as_slow_as, slowness
from worker_link_helpers import link, pause, prompt_of, worker
from worker_link_helpers import simulated as engine

from preble.types import WorkerSpec
from preble_loadgen.report import RequestRecord, summarize
from preble_loadgen.simulator.faults import Fault


async def heard() -> tuple[WorkerSpec, list[TimedStep]]:
    """From a worker that has answered two requests with a rest between them."""
    async with worker(engine(pause)) as running, WorkerPace(running.address) as pace:
        async with link(running.address) as router:
            for name in ("first", "second"):
                await router.submit(name, prompt_of(40), max_tokens=5)
                await router.finished(name)
                await asyncio.sleep(0.5)
        return pace.spec, pace.steps


async def test_every_step_is_heard_with_the_time_that_it_took_and_no_rest() -> None:
    spec, steps = await heard()
    assert spec.page_tokens == 16 and len(steps) == 10
    assert all(step.predicted_seconds > 0.0 for step in steps)
    assert steps[5].ended_at - steps[4].ended_at - steps[5].seconds > 0.2
    assert slowness(steps) == pytest.approx(
        sum(step.seconds for step in steps) / sum(step.predicted_seconds for step in steps)
    )


def test_a_simulated_worker_is_as_slow_as_the_live_one_was_from_moment_to_moment() -> None:
    steps = [TimedStep(10.2, 0.2, 0.1), TimedStep(10.4, 0.2, 0.2), TimedStep(11.1, 0.3, 0.1)]
    first, later = as_slow_as(steps, began_at=10.0)
    assert (first.at, first.seconds, first.factor) == (0.0, 0.5, pytest.approx(4 / 3))
    assert (later.at, later.seconds, later.factor) == (1.0, 0.5, pytest.approx(3.0))


async def test_the_simulated_worker_is_what_the_live_one_says_that_it_is() -> None:
    spec, _ = await heard()
    trace = chats(20, rate=100.0, seed=1)
    fast, slow = (
        simulated("alise", trace, spec, (Fault(kind="slow", factor=factor),)) for factor in (1, 3)
    )
    assert fast.num_complete == slow.num_complete == 20
    assert slow.e2e.mean > 2.0 * fast.e2e.mean


@pytest.mark.parametrize(
    ("live", "error", "agrees"),
    [(1.1, "", True), (1.3, "", False), (0.7, "", False), (1.0, "worker_failed", False)],
)
async def test_live_times_must_be_about_those_simulated(
    live: float, error: str, agrees: bool
) -> None:
    def report(seconds: float, error: str = ""):
        record = RequestRecord(
            index=0, scheduled_at=0.0, sent_at=0.0, first_at=seconds, ended_at=seconds, error=error
        )
        return summarize([record])

    spec, steps = await heard()
    seen = Live([], spec, steps, 0, 0.5)
    assert Outcome("fcfs", seen, report(live, error), report(1.0)).agrees is agrees
