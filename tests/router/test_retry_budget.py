"""Retries that a dying cluster is spared."""

from fake_worker import FakeWorker
from router_helpers import cluster

from preble_router.retry_budget import LEAST, SHARE, RetryBudget
from preble_router.worker_metrics import cluster_families


def num_allowed(budget: RetryBudget, *, num_failures: int, now: float) -> int:
    """Of a thousand requests that break off at once."""
    allowed = 0
    for _ in range(1000):
        if budget.allows(num_failures=num_failures, now=now):
            budget.count_retry(num_failures=num_failures, now=now)
            allowed += 1
    return allowed


def test_the_first_new_placement_is_free() -> None:
    assert num_allowed(RetryBudget(), num_failures=1, now=0.0) == 1000


def test_further_ones_are_a_share_of_the_requests() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.count_request(now=0.0)
    assert num_allowed(budget, num_failures=2, now=0.0) == int(LEAST + SHARE * 100)
    assert budget.refused_total == 1000 - int(LEAST + SHARE * 100)


def test_the_budget_comes_back_with_time() -> None:
    budget = RetryBudget()
    assert num_allowed(budget, num_failures=2, now=0.0) == LEAST
    assert num_allowed(budget, num_failures=3, now=0.1) == 0
    assert num_allowed(budget, num_failures=2, now=60.0) >= LEAST - 1


async def test_what_the_budget_refused_is_a_metric() -> None:
    async with cluster(FakeWorker("w0")) as dispatcher:
        dispatcher.attempts.budget.refused_total = 7
        samples = {
            sample.name: sample.value
            for family in cluster_families(dispatcher.status())
            for sample in family.samples
        }
    assert samples["preble_router_retries_refused_total"] == 7
