"""The order in which waiting requests start."""

from collections import Counter

import pytest
from local_policy_helpers import Job
from worker_helpers import Worker

from preble.errors import ConfigError
from preble_worker.policies import POLICY_NAMES, LocalPolicy, make_policy
from preble_worker.policies.preble_groups import NUM_GROUPS, group_of


def one_of_each_group(copies: int) -> list[Job]:
    """`copies` requests for every group, the groups mixed."""
    return [Job(10 * group + 5) for _ in range(copies) for group in range(NUM_GROUPS)]


def take(policy: LocalPolicy, candidates: list[Job], count: int) -> list[Job]:
    """What one batch of `count` takes; they leave `candidates`."""
    taken = []
    for candidate in policy.order(candidates[:], now=0.0):
        if len(taken) == count:
            break
        policy.started(candidate)
        taken.append(candidate)
    taken_ids = {id(candidate) for candidate in taken}
    candidates[:] = [c for c in candidates if id(c) not in taken_ids]
    return taken


def groups_of(candidates: list[Job]) -> list[int]:
    """How many of each group, best cached group first."""
    count = Counter(map(group_of, candidates))
    return [count[group] for group in reversed(range(NUM_GROUPS))]


def test_unknown_policy_names_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match=r"'fifo'.*fcfs, lpm, preble_groups"):
        make_policy("fifo")


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_orders_all_candidates_once(name: str) -> None:
    candidates = one_of_each_group(3)
    ordered = list(make_policy(name).order(candidates, now=0.0))
    assert sorted(map(id, ordered)) == sorted(map(id, candidates))


def test_fcfs_takes_the_oldest() -> None:
    candidates = [Job(90), Job(0), Job(50)]
    assert take(make_policy("fcfs"), candidates[:], 2) == candidates[:2]


def test_lpm_takes_the_best_cached_and_the_oldest_of_equals() -> None:
    first, second, third = Job(30), Job(80, arrived_at=1), Job(80, arrived_at=2)
    assert take(make_policy("lpm"), [first, second, third], 3) == [second, third, first]


def test_one_batch_takes_ten_to_nine_down_to_one() -> None:
    taken = take(make_policy("preble_groups"), one_of_each_group(20), 55)
    assert groups_of(taken) == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_many_small_batches_keep_the_same_proportion() -> None:
    policy, candidates = make_policy("preble_groups"), one_of_each_group(60)
    taken = [candidate for _ in range(55) for candidate in take(policy, candidates, 5)]
    assert groups_of(taken) == [50, 45, 40, 35, 30, 25, 20, 15, 10, 5]


def test_looking_without_taking_changes_nothing() -> None:
    policy, candidates = make_policy("preble_groups"), one_of_each_group(20)
    assert list(policy.order(candidates, now=0.0)) == list(policy.order(candidates, now=0.0))


def test_groups_are_served_oldest_first_inside() -> None:
    candidates = [Job(95, arrived_at=at) for at in range(9)]
    assert take(make_policy("preble_groups"), candidates[:], 9) == candidates


def test_an_absent_group_saves_up_no_credit() -> None:
    policy = make_policy("preble_groups")
    take(policy, [Job(95) for _ in range(500)], 500)
    candidates = [Job(95) for _ in range(100)] + [Job(5) for _ in range(100)]
    taken = take(policy, candidates, 55)
    assert groups_of(taken) == [50, 0, 0, 0, 0, 0, 0, 0, 0, 5]


def test_groups_follow_the_cache() -> None:
    policy = make_policy("preble_groups")
    cold, warm = Job(0), Job(50)
    assert next(iter(policy.order([cold, warm], now=0.0))) is warm
    cold.cached_tokens = 99
    assert next(iter(policy.order([cold, warm], now=0.0))) is cold


# Through the scheduler, with room for one request at a time.


def finished_order(worker: Worker) -> list[str]:
    """Request ids in the order in which they sampled their first token."""
    order: dict[str, None] = {}
    while worker.scheduler.num_live:
        worker.step()
        for (request_id, _), received in worker.received.items():
            if received.tokens:
                order.setdefault(request_id)
    return list(order)


def warm_up(worker: Worker, prompt: list[int]) -> None:
    worker.submit("warm-up", prompt, max_tokens=1)
    worker.run()
    del worker.received["warm-up", 1], worker.requests["warm-up", 1]


def test_cached_requests_overtake_under_lpm() -> None:
    worker = Worker(policy="lpm", max_sequences=1)
    warm_up(worker, [1] * 12)
    worker.submit("cold", [2] * 12, max_tokens=2)
    worker.submit("warm", [1] * 12, max_tokens=2)
    assert finished_order(worker) == ["warm", "cold"]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_priority_stands_above_every_policy(policy: str) -> None:
    worker = Worker(policy=policy, max_sequences=1)
    warm_up(worker, [1] * 12)
    worker.submit("usual", [1] * 12)
    worker.submit("urgent", [2] * 12, priority=1)
    worker.submit("whenever", [1] * 12, priority=-1)
    assert finished_order(worker) == ["urgent", "usual", "whenever"]


def starve(worker: Worker) -> list[str]:
    """A cold request among warm ones that come faster than one can run."""
    warm_up(worker, [1] * 12)
    worker.submit("cold", [2] * 12, max_tokens=1)
    order: dict[str, None] = {}
    for number in range(40):
        worker.submit(f"warm-{number}", [1] * 12, max_tokens=1)
        worker.step()
        for (request_id, _), received in worker.received.items():
            if received.tokens:
                order.setdefault(request_id)
    return list(order)


def test_lpm_starves_a_cold_request_until_it_is_old() -> None:
    order = starve(Worker(policy="lpm", max_sequences=1, age_escape_seconds=10.0))
    assert order.index("cold") == 10  # One second a step: the first one after its tenth.
    order = starve(Worker(policy="lpm", max_sequences=1, age_escape_seconds=1e9))
    assert "cold" not in order


def test_pages_are_reserved_for_who_waited_long() -> None:
    """A request that needs nearly all pages gets them although small ones keep coming."""
    worker = Worker(policy="lpm", num_pages=16, age_escape_seconds=10.0, max_sequences=4)
    warm_up(worker, [1] * 9)
    for number in range(3):
        worker.submit(f"before-{number}", [1] * 9, max_tokens=8)
    worker.step()
    worker.submit("large", [2] * 50, max_tokens=4)
    for number in range(60):
        worker.submit(f"small-{number}", [1] * 9, max_tokens=8)
        worker.step()
    received = worker.output("large")
    assert received.finish_reason is not None
    overtaken = [f"small-{n}" for n in range(60) if worker.output(f"small-{n}").tokens]
    assert 0 < len(overtaken) < 40
    worker.run()
    worker.assert_complete()
