"""Retries that a dying cluster is spared."""

from preble_router.retry_budget import LEAST, SHARE, RetryBudget


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
