"""dlpm and edf: order by something else than age, and yet nobody starves."""

import random
from itertools import islice

import pytest
from fake_engine import StubEngine
from local_policy_helpers import Job
from worker_helpers import make_request

from preble.fair_share import OUTPUT_WEIGHT, SAVINGS_TOKENS
from preble_worker.config import SchedulerConfig
from preble_worker.policies import PolicyOptions
from preble_worker.policies.dlpm import (
    QUANTUM_TOKENS,
    Dlpm,
    Standing,
)
from preble_worker.policies.edf import DEMOTED_SHARE, Edf
from preble_worker.scheduler import LocalScheduler

# dlpm.

SAVINGS = int(SAVINGS_TOKENS)


def books(**credit: float) -> Dlpm:
    """A policy under which these tenants have that much credit, at most their savings."""
    policy = Dlpm(PolicyOptions())
    waits = Job(tenant="first")
    policy.observe([waits], [], now=0.0)
    for tenant, tokens in credit.items():
        spent = int(SAVINGS_TOKENS - tokens)
        if spent:
            policy.started(Job(num_tokens=spent, tenant=tenant))
        assert policy.credit(tenant) == tokens
    return policy


def test_dlpm_takes_the_best_cached_of_who_has_credit() -> None:
    policy = books(rich=100.0, poor=-100.0)
    cold, warm = Job(tenant="rich"), Job(90, tenant="rich")
    poor, later = Job(95, tenant="poor"), Job(tenant="rich", arrived_at=1.0)
    assert list(policy.order([cold, later, poor, warm], now=2.0)) == [warm, cold, poor, later]


def test_dlpm_lets_the_old_go_first_within_their_tenant_only() -> None:
    policy = books(a=SAVINGS_TOKENS, b=-10.0)
    warm, old = Job(90, tenant="a", arrived_at=9.0), Job(tenant="a", arrived_at=0.0)
    older = Job(tenant="b", arrived_at=-5.0)
    assert list(policy.order([older, old, warm], now=10.0)) == [old, warm, older]


def test_dlpm_takes_places_of_whom_one_has_much_credit_on() -> None:
    policy = books(light=SAVINGS_TOKENS, heavy=-700.0, heavier=-2000.0)

    def running(tenant: str) -> list[Job]:
        return [Job(tenant=tenant, arrived_at=float(at), runs=True) for at in range(3)]

    light, heavy, heavier = running("light"), running("heavy"), running("heavier")
    prefills = Job(tenant="heavier", arrived_at=9.0)
    spare = policy.dispensable([*light, *heavy, *heavier, prefills], now=10.0)
    assert spare == [prefills, *heavier[:0:-1], *heavy[:0:-1], *light[:0:-1]]
    waits = Job(tenant="light", arrived_at=9.0)
    assert policy.outranks(waits, heavy[1], now=10.0)
    assert not policy.outranks(waits, light[1], now=10.0)
    assert not policy.outranks(heavy[1], waits, now=10.0)
    assert next(iter(policy.order([Job(99, tenant="heavy"), waits], now=10.0))) is waits


@pytest.mark.parametrize("seed", range(20))
def test_dlpm_says_of_all_at_once_whether_any_who_waits_outranks_any_who_runs(seed: int) -> None:
    rng = random.Random(seed)
    tenants = "abcd"
    policy = books(**{tenant: float(rng.randint(-3000, SAVINGS)) for tenant in tenants})
    waiting = [Job(tenant=rng.choice(tenants)) for _ in range(rng.randint(0, 3))]
    running = [
        Job(tenant=rng.choice(tenants), runs=rng.random() < 0.7) for _ in range(rng.randint(0, 3))
    ]
    for job in running:
        policy.started(job)
    one_by_one = any(policy.outranks(w, r, now=0.0) for w in waiting for r in running)
    assert policy.outrank_any(waiting, running) == one_by_one


def test_dlpm_lets_nobody_save_more_than_so_much() -> None:
    policy = books(idle=SAVINGS_TOKENS, busy=0.0)
    for _ in range(100):
        policy.started(Job(num_tokens=1000, tenant="busy"))
    assert policy.credit("idle") == policy.credit("new") == SAVINGS_TOKENS
    assert -1000.0 < policy.credit("busy") <= 0.0


@pytest.mark.parametrize("tokens", [300, 100_000])
def test_dlpm_counts_nothing_against_who_got_what_nobody_else_wanted(tokens: int) -> None:
    """What runs when another comes does count, up to the savings."""
    policy = Dlpm(PolicyOptions())
    for number in range(50):
        job = Job(num_tokens=tokens, tenant="steady", arrived_at=number + 0.5)
        policy.observe([job], [], now=number + 1.0)
        policy.started(job)
        job.runs, job.num_generated = True, 40
        policy.ended(job, finished=True)
    runs = Job(num_tokens=tokens, tenant="steady", runs=True, num_generated=10)
    runs.standing = Standing(0)
    policy.observe([Job(tenant="other", arrived_at=60.0)], [runs], now=61.0)
    spent = min(tokens + 10 * OUTPUT_WEIGHT, SAVINGS_TOKENS)
    assert policy.credit("steady") == SAVINGS_TOKENS - spent
    assert policy.credit("other") == SAVINGS_TOKENS


def served(policy: str, *, num_steps: int) -> tuple[dict[str, float], float]:
    """Service of two tenants, and the widest gap between them from the first service of both on.

    One sends requests that share most of their long prompts, the other short cold ones; both have
    more waiting than can run, all of it sent before the other one's.
    """
    config = SchedulerConfig(num_pages=4000, max_sequences=4, policy=policy, age_escape_seconds=1e9)
    scheduler = LocalScheduler(config, epoch=1)
    tenants, sizes = {}, {}
    for number in range(1200):
        tenant = "shares" if number < 600 else "cold"
        prompt = [1] * 320 + [number] * 16 if tenant == "shares" else [number] * 64
        request = make_request(
            f"r{number}", prompt, 8 if tenant == "shares" else 24, tenant=tenant, ignore_eos=True
        )
        tenants[request.request_id], sizes[request.request_id] = tenant, len(prompt)
        scheduler.add(request, now=0.0)
    service = {"shares": 0.0, "cold": 0.0}
    gap = 0.0
    for step in range(num_steps):
        batch = scheduler.schedule(now=0.02 * step)
        assert batch is not None
        outputs = scheduler.complete(batch, StubEngine().run(batch), now=0.02 * step)
        for output in outputs.outputs:
            tenant = tenants[output.request_id]
            if output.position == 0:
                service[tenant] += sizes[output.request_id] - (output.cached_tokens or 0)
            service[tenant] += OUTPUT_WEIGHT
        gap = max(gap, abs(service["shares"] - service["cold"]))
    assert scheduler.load().num_waiting > 0
    return service, gap


def test_two_backlogged_tenants_get_the_same_but_for_a_bound() -> None:
    bound = QUANTUM_TOKENS + 4 * (320 + OUTPUT_WEIGHT * 24)
    service, gap = served("dlpm", num_steps=1500)
    assert min(service.values()) > 2 * bound
    assert gap <= bound
    _, unfair = served("lpm", num_steps=1500)
    assert unfair > 2 * bound


def test_dlpm_charges_no_output_that_came_from_elsewhere() -> None:
    policy = books()
    resumed = Job(tenant="a", num_generated=500)
    policy.started(resumed)
    resumed.num_generated += 10
    policy.ended(resumed, finished=True)
    assert policy.credit("a") == SAVINGS_TOKENS - 100 - 10 * OUTPUT_WEIGHT
    policy.ended(Job(tenant="b", num_generated=500), finished=False)
    assert policy.credit("b") == SAVINGS_TOKENS


def test_dlpm_forgets_who_went_away() -> None:
    policy = books()
    for number in range(10_002):
        policy.started(Job(tenant=f"t{number}"))
    policy.observe([Job(tenant="t5")], [Job(tenant="t6", runs=True)], now=1.0)
    spent = SAVINGS_TOKENS - 100.0
    assert [policy.credit(f"t{number}") for number in (4, 5, 6)] == [SAVINGS_TOKENS, spent, spent]


# edf.


def test_edf_takes_the_earliest_deadline_and_the_lost_ones_last() -> None:
    policy = Edf(PolicyOptions(ttft_slo_seconds=5.0))
    usual = Job(arrived_at=0.0)
    hasty = Job(arrived_at=1.0, ttft_slo_seconds=2.0)
    lost = Job(arrived_at=0.0, ttft_slo_seconds=0.5)
    resumed = Job(arrived_at=0.5, num_generated=3)
    assert list(policy.order([usual, lost, resumed, hasty], now=2.0)) == [
        resumed,
        hasty,
        usual,
        lost,
    ]


def test_edf_gives_up_on_a_prompt_that_cannot_be_computed_in_time() -> None:
    policy = Edf(PolicyOptions())
    assert not policy.is_lost(Job(num_tokens=10_000), now=0.0)
    assert policy.is_lost(Job(num_tokens=30_000), now=0.0)
    assert not policy.is_lost(Job(29_000, num_tokens=30_000), now=0.0)


@pytest.mark.parametrize("per_batch", [1, 3, 50])
def test_the_demoted_get_their_share_of_the_tokens(per_batch: int) -> None:
    policy = Edf(PolicyOptions(ttft_slo_seconds=1.0))
    now, started = 0.0, {True: 0, False: 0}
    lost = [Job(num_tokens=300, arrived_at=-100.0) for _ in range(200)]
    for _ in range(900 // per_batch):
        now += 1.0
        hopeful = [Job(num_tokens=100, arrived_at=now) for _ in range(per_batch)]
        for candidate in islice(policy.order([*lost, *hopeful], now=now), per_batch):
            policy.started(candidate)
            started[bool(candidate.standing)] += candidate.num_missing
            if candidate.standing:
                lost.remove(candidate)
    share = started[True] / sum(started.values())
    assert 0.85 * DEMOTED_SHARE <= share <= 1.15 * DEMOTED_SHARE
