"""Policies that also say who makes room: mlfq, srpt and alise, alone and through the scheduler."""

import math
import random
from statistics import fmean

import pytest
from fake_engine import StubEngine
from local_policy_helpers import Job
from worker_helpers import Worker, make_request

from preble_worker.config import SchedulerConfig
from preble_worker.policies import (
    POLICY_NAMES,
    PolicyOptions,
    RunningPolicy,
    alise,
    make_policy,
)
from preble_worker.policies.alise import Alise, level_of
from preble_worker.policies.mlfq import FIRST_QUANTUM_SECONDS, LOST_SHARE, Mlfq
from preble_worker.policies.policy import UNMEASURED
from preble_worker.policies.srpt import LIMIT, Srpt
from preble_worker.scheduler import LocalScheduler

RUNNING = ("mlfq", "srpt", "alise")
TOKEN_SECONDS = UNMEASURED.decode_seconds(0.0)


def first_tokens(worker: Worker, *, max_steps: int = 2000) -> list[str]:
    """Request ids in the order in which they sampled their first token."""
    order: dict[str, None] = {}
    for _ in range(max_steps):
        if not worker.scheduler.num_live:
            return list(order)
        worker.step()
        for (request_id, _), received in worker.received.items():
            if received.tokens:
                order.setdefault(request_id)
    raise AssertionError("never done")


# Through the scheduler.


def finish_seconds(policy: str, jobs: list[tuple[float, int]], **options: int) -> list[float]:
    """How long each of `jobs`, (arrival, output length), took; steps of 20 ms, oracle lengths."""
    config = SchedulerConfig(num_pages=4000, max_sequences=4, policy=policy, **options)
    scheduler = LocalScheduler(config, epoch=1)
    waiting = [
        (at, make_request(str(n), [n % 900] * 20, length, predicted_output_tokens=length))
        for n, (at, length) in enumerate(jobs)
    ]
    took: dict[str, float] = {}
    now = 0.0
    while len(took) < len(jobs):
        while waiting and waiting[0][0] <= now:
            scheduler.add(waiting.pop(0)[1], now=now)
        batch = scheduler.schedule(now=now)
        now += 0.02
        if batch is not None:
            for output in scheduler.complete(batch, StubEngine().run(batch), now=now).outputs:
                if output.finish_reason is not None:
                    took[output.request_id] = now - jobs[int(output.request_id)][0]
    return [took[str(n)] for n in range(len(jobs))]


def heavy_tailed(count: int, *, every: float) -> list[tuple[float, int]]:
    rng = random.Random(3)
    return [(n * every, min(int(8 * rng.paretovariate(1.1)), 600)) for n in range(count)]


def test_srpt_and_alise_with_an_oracle_beat_fcfs_on_heavy_tails() -> None:
    jobs = heavy_tailed(120, every=0.15)
    mean = {name: fmean(finish_seconds(name, jobs)) for name in ("fcfs", *RUNNING)}
    assert mean["srpt"] < 0.5 * mean["fcfs"]
    assert mean["alise"] < 0.6 * mean["fcfs"]
    assert mean["mlfq"] < 0.8 * mean["fcfs"]


@pytest.mark.parametrize("policy", RUNNING)
def test_who_is_short_takes_the_place_of_who_is_long(policy: str) -> None:
    worker = Worker(policy=policy, max_sequences=1, step_seconds=0.02)
    worker.submit("long", [1] * 8, max_tokens=100)
    for _ in range(20):
        worker.step()
    worker.submit("short", [2] * 8, max_tokens=2)
    while worker.output("short").finish_reason is None:
        worker.step()
    assert worker.output("long").finish_reason is None
    assert len(worker.output("long").tokens) <= 25
    worker.run()
    worker.assert_complete()
    assert worker.scheduler.load().preemptions_total == 1


@pytest.mark.parametrize("policy", RUNNING)
def test_room_is_made_for_pages_as_well(policy: str) -> None:
    worker = Worker(policy=policy, num_pages=24, step_seconds=0.02)
    worker.submit("long", [1] * 60, max_tokens=30)
    for _ in range(8):
        worker.step()
    worker.submit("short", [2] * 40, max_tokens=2)
    while worker.output("short").finish_reason is None:
        worker.step()
    assert worker.output("long").finish_reason is None or policy == "mlfq"
    worker.run()
    worker.assert_complete()


@pytest.mark.parametrize("policy", RUNNING)
@pytest.mark.parametrize("at_step", range(1, 20))
def test_preemption_at_any_step_changes_no_token(policy: str, at_step: int) -> None:
    """The first one preempted shares a prefix with the newcomer."""
    worker = Worker(policy=policy, max_sequences=1, step_seconds=0.02, max_batch_tokens=8)
    worker.submit("long", [1] * 14, max_tokens=60, seed=1)
    for _ in range(at_step):
        worker.step()
    worker.submit("short", [1] * 9 + [2], max_tokens=1, seed=2)
    worker.run()
    worker.assert_complete()
    assert worker.scheduler.load().preemptions_total >= (policy != "mlfq")


def test_equal_jobs_take_turns_under_mlfq() -> None:
    """One place, three jobs: each generates a quantum, then the next has its turn."""
    worker = Worker(policy="mlfq", max_sequences=1, step_seconds=0.02)
    for name in "abc":
        worker.submit(name, [ord(name)] * 8, max_tokens=100, ignore_eos=True)
    turns = ""
    before = dict.fromkeys("abc", 0)
    while all(worker.output(name).finish_reason is None for name in "abc"):
        worker.step()
        for name in "abc":
            count = len(worker.output(name).tokens)
            if count > before[name] and turns[-1:] != name:
                turns += name
            before[name] = count
    assert turns.startswith("abcabcabc")
    worker.run()
    worker.assert_complete()


@pytest.mark.parametrize("swap_token_seconds", [math.inf, 1e-6])
def test_mlfq_spares_who_has_not_paid_for_its_return(swap_token_seconds: float) -> None:
    """Return costs 2,000 prefill tokens, 0.1 s; alone, a token takes 20 ms of the worker."""
    policy = Mlfq(PolicyOptions(swap_token_seconds=swap_token_seconds))
    runs = Job(num_tokens=2000, cached_tokens=2000, num_generated=7)
    policy.observe([], [runs], now=0.0)
    policy.started(runs)
    lost = UNMEASURED.prefill_seconds(2000.0, 0.0)
    enough = math.ceil(lost * (1.0 / LOST_SHARE - 1.0) / UNMEASURED.decode_seconds(2000.0))
    spared_until = 0
    while not policy.dispensable([runs], now=0.0):
        spared_until += 1
        runs.num_generated += 1
    swaps = swap_token_seconds < math.inf
    assert spared_until == 0 if swaps else 10 < enough <= spared_until <= enough + 1


def long_one_is_served(policy: str, **options: float) -> bool:
    """A long request, and short ones that come faster than they can be served."""
    worker = Worker(policy=policy, max_sequences=1, step_seconds=0.2, **options)
    worker.submit("long", [1] * 20, max_tokens=40, predicted_output_tokens=40)
    for number in range(320):
        worker.submit(f"s{number}", [2 + number % 20] * 6, max_tokens=2, predicted_output_tokens=2)
        worker.step()
        if worker.output("long").finish_reason is not None:
            return True
    return False


@pytest.mark.parametrize("policy", [name for name in POLICY_NAMES if name != "mlfq"])
def test_overload_starves_nobody(policy: str) -> None:
    assert long_one_is_served(policy)


def test_without_their_escapes_the_long_one_starves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alise, "PROMOTION_STRETCH", 1e9)
    for policy in ("alise", "srpt"):
        assert not long_one_is_served(policy, age_escape_seconds=1e9)


@pytest.mark.parametrize("policy", RUNNING)
def test_a_request_of_lower_priority_is_no_reason_to_stop(policy: str) -> None:
    worker = Worker(policy=policy, max_sequences=1, step_seconds=0.02)
    worker.submit("long", [1] * 8, max_tokens=60, priority=1)
    for _ in range(12):
        worker.step()
    worker.submit("short", [2] * 8, max_tokens=1)
    worker.run()
    assert worker.scheduler.load().preemptions_total == 0


# Alone.


def test_srpt_spares_who_is_nearly_done_and_who_was_overdue() -> None:
    policy = Srpt(PolicyOptions())
    fresh = Job(max_tokens=100, num_generated=10, runs=True)
    nearly = Job(max_tokens=100, num_generated=int(100 * LIMIT) + 1, runs=True)
    overdue = Job(max_tokens=100, num_generated=10, waited_seconds=1000.0, runs=True)
    assert policy.dispensable([nearly, fresh, overdue], now=0.0) == [fresh]
    assert policy.outranks(Job(max_tokens=50), fresh, now=0.0)
    assert not policy.outranks(Job(max_tokens=80), fresh, now=0.0)


def test_srpt_learns_that_outputs_outgrow_their_predictions() -> None:
    policy = Srpt(PolicyOptions())
    for _ in range(50):
        for length in (100, 100, 400):
            job = Job(predicted_output_tokens=200, num_generated=length)
            policy.ended(job, finished=True)
    young = Job(predicted_output_tokens=200)
    old = Job(predicted_output_tokens=200, num_generated=150)
    assert policy.standing(young).remaining == pytest.approx(200, rel=0.02)
    assert policy.standing(old).remaining == pytest.approx(250, rel=0.02)


def test_alise_levels_double_and_waiting_rises() -> None:
    assert [level_of(s) for s in (0.2, 0.3, 0.6, 1.5, 3.0, 5.0, 100.0)] == [0, 1, 2, 3, 4, 5, 5]
    policy = Alise(PolicyOptions())
    long, short = Job(max_tokens=400), Job(max_tokens=5, arrived_at=1.0, waiting_since=1.0)
    assert policy.order([long, short], now=1.0) == [short, long]
    total = policy.standing(long).total
    late = 1.0 + 15 * total
    newcomer = Job(max_tokens=5, arrived_at=late, waiting_since=late)
    assert policy.order([long, newcomer], now=late) == [long, newcomer]


def test_alise_estimates_waits_by_the_work_ahead() -> None:
    policy = Alise(PolicyOptions(swap_token_seconds=1e-6))
    running = [Job(max_tokens=100, runs=True), Job(max_tokens=50, num_generated=25, runs=True)]
    waiting = [Job(max_tokens=30), Job(max_tokens=20, arrived_at=1.0)]
    policy.observe(waiting, running, now=0.0)
    order = policy.order(waiting, now=0.0)
    waits = [policy.estimated_wait(job) for job in order]
    assert waits[0] == pytest.approx(25 * TOKEN_SECONDS, rel=0.05)
    own = policy.standing(order[0]).remaining
    assert waits[1] == pytest.approx(waits[0] + own / 2)


def test_mlfq_joins_by_prefill_and_sinks_by_output() -> None:
    policy = Mlfq(PolicyOptions())
    short, long = Job(num_tokens=100), Job(num_tokens=20_000)
    assert policy.standing(short).level == 0
    assert policy.standing(long).level == 4  # A second of prefill, in a quantum of 1.6.
    short.runs = True
    for quantum, level in ((1, 0), (3, 1), (7, 2)):
        tokens = int(quantum * FIRST_QUANTUM_SECONDS / TOKEN_SECONDS) - 1
        short.num_generated = tokens
        policy.observe([], [short], now=0.0)
        assert policy.standing(short).level == level
    policy.observe([long], [], now=9.9)
    assert policy.standing(long).level == 4
    policy.observe([long], [], now=10.0)
    assert policy.standing(long).level == 0
    newcomer = Job(num_tokens=1, arrived_at=10.0, waiting_since=10.0)
    assert policy.order([newcomer, long], now=10.0) == [long, newcomer]


@pytest.mark.parametrize("name", RUNNING)
def test_whoever_outranks_another_also_comes_first(name: str) -> None:
    """Else they would change places for ever."""
    rng = random.Random(5)
    policy = make_policy(name)
    assert isinstance(policy, RunningPolicy)
    for _ in range(300):
        one, other = (
            Job(
                num_tokens=rng.randrange(1, 4000),
                max_tokens=rng.randrange(100, 500),
                num_generated=rng.randrange(100),
                arrived_at=rng.random(),
                waited_seconds=rng.choice([0.0, 5.0, 50.0]),
                waiting_since=rng.random(),
            )
            for _ in range(2)
        )
        other.runs = True
        now = 1.0 + rng.random() * 20
        policy.observe([one], [other], now=now)
        spared = other not in policy.dispensable([other], now=now)
        if spared or not policy.outranks(one, other, now=now):
            continue
        other.waiting_since, other.runs = now, False
        assert policy.order([other, one], now=now)[0] is one  # type: ignore[index]
