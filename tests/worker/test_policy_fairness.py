"""dlpm and edf: order by something else than age, and yet nobody starves."""

from itertools import islice

import pytest
from local_policy_helpers import Job
from worker_helpers import StubEngine, make_request

from preble_worker.config import SchedulerConfig
from preble_worker.policies import PolicyOptions
from preble_worker.policies.dlpm import OUTPUT_WEIGHT, QUANTUM_TOKENS, Dlpm
from preble_worker.policies.edf import DEMOTED_SHARE, Edf
from preble_worker.scheduler import LocalScheduler

# dlpm.


def test_dlpm_takes_the_best_cached_of_who_has_credit() -> None:
    policy = Dlpm(PolicyOptions())
    policy.credit = {"rich": 100.0, "poor": -100.0}
    cold, warm = Job(tenant="rich"), Job(90, tenant="rich")
    poor = Job(95, tenant="poor")
    assert list(policy.order([cold, poor, warm], now=0.0)) == [warm, cold, poor]


def test_dlpm_lets_the_old_go_first_within_their_tenant_only() -> None:
    policy = Dlpm(PolicyOptions())
    policy.credit = {"a": 1e6, "b": -10.0}
    warm, old = Job(90, tenant="a", arrived_at=9.0), Job(tenant="a", arrived_at=0.0)
    older = Job(tenant="b", arrived_at=-5.0)
    assert list(policy.order([older, old, warm], now=10.0)) == [old, warm, older]


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


def test_dlpm_forgets_who_went_away() -> None:
    policy = Dlpm(PolicyOptions())
    for number in range(10_002):
        policy.started(Job(tenant=f"t{number}"))
    policy.observe([Job(tenant="t5")], [Job(tenant="t6", runs=True)], now=0.0)
    assert set(policy.credit) == {"t5", "t6"}


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
