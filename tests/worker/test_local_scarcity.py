"""Scenes of too few pages, and of requests that are ended from outside."""

import pytest
from worker_helpers import Worker

from preble.types import FinishReason
from preble_worker.policies import POLICY_NAMES

LONG = list(range(40))
"""A prompt of ten pages."""


# Scarcity.


def preempting(*, prefix_caching: bool) -> Worker:
    worker = Worker(num_pages=20, prefix_caching=prefix_caching)
    for number in range(4):
        worker.submit(f"r{number}", [number] * 12, max_tokens=30, seed=number)
    worker.run()
    worker.assert_complete()
    return worker


def test_preempted_requests_lose_and_repeat_nothing() -> None:
    worker = preempting(prefix_caching=True)
    load = worker.scheduler.load()
    assert load.preemptions_total > 0
    # Only the first start counts, and what was cached of it.
    assert (load.prompt_tokens_total, load.cached_tokens_total) == (48, 0)
    assert all(worker.output(f"r{number}").cached_tokens == 0 for number in range(4))


def test_preempted_requests_find_their_own_pages_again() -> None:
    with_tree, without = preempting(prefix_caching=True), preempting(prefix_caching=False)
    assert with_tree.engine.num_prefill_tokens < 0.8 * without.engine.num_prefill_tokens


def test_the_newest_of_the_lowest_priority_is_preempted() -> None:
    worker = Worker(num_pages=9)
    worker.submit("old", [1] * 8, max_tokens=24)
    worker.submit("new", [2] * 8, max_tokens=24)
    worker.step()
    while not worker.scheduler.load().preemptions_total:
        worker.step()
    assert len(worker.batches[-1].slots) == 1
    worker.run()
    worker.assert_complete()
    first, second = worker.output("old"), worker.output("new")
    assert len(first.tokens) == len(second.tokens) == 24
    worker = Worker(num_pages=9)
    worker.submit("old", [1] * 8, max_tokens=24)
    worker.submit("urgent", [2] * 8, max_tokens=24, priority=1)
    while worker.output("urgent").finish_reason is None:
        worker.step()
    assert worker.output("old").finish_reason is None
    assert worker.scheduler.load().preemptions_total


def test_a_preempted_request_resumes_before_newer_ones_start() -> None:
    worker = Worker(num_pages=9, policy="fcfs")
    worker.submit("old", [1] * 8, max_tokens=24)
    worker.submit("preempted", [2] * 8, max_tokens=24)
    while not worker.scheduler.load().preemptions_total:
        worker.step()
    known = len(worker.output("preempted").tokens)
    worker.submit("newer", [3] * 8, max_tokens=4)
    while not worker.output("newer").tokens:
        worker.step()
    assert len(worker.output("preempted").tokens) > known
    worker.run()
    worker.assert_complete()


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_there_is_no_deadlock_in_the_smallest_pool(policy: str, prefix_caching: bool) -> None:
    """Twelve requests, each of which may grow to the whole pool."""
    worker = Worker(num_pages=8, context_tokens=32, policy=policy, prefix_caching=prefix_caching)
    for number in range(12):
        worker.submit(f"r{number}", [number % 2] * 9 + [number], max_tokens=22, seed=number)
    worker.run()
    worker.assert_complete()


def test_nobody_starts_only_to_be_preempted_in_the_next_step() -> None:
    worker = Worker(num_pages=6)
    worker.submit("grows", [1] * 8, max_tokens=4)
    worker.submit("fits-exactly", [2] * 16, max_tokens=4)
    worker.run()
    worker.assert_complete()
    assert worker.scheduler.load().preemptions_total == 0


def test_who_did_not_fit_beside_others_starts_when_they_have_gone() -> None:
    """With pages kept for the growth of three others, it would have needed more than exist."""
    worker = Worker(num_pages=8)
    for number in range(3):
        worker.submit(f"small-{number}", [number] * 4, max_tokens=3)
    worker.submit("large", [9] * 24, max_tokens=4)
    worker.run()
    worker.assert_complete()


def test_the_load_report_adds_up() -> None:
    worker = Worker(num_pages=24, max_sequences=2)
    worker.submit("a", LONG, max_tokens=4)
    worker.submit("b", [7] * 20, max_tokens=4)
    worker.submit("c", [8] * 20, max_tokens=4)
    load = worker.scheduler.load()
    assert (load.num_waiting, load.num_running, load.waiting_prefill_tokens) == (3, 0, 80)
    worker.step()
    load = worker.scheduler.load()
    assert (load.num_waiting, load.num_running, load.waiting_prefill_tokens) == (2, 1, 48)
    assert (load.used_pages, load.free_pages, load.cached_pages) == (10, 14, 0)
    worker.step()
    load = worker.scheduler.load()
    assert (load.num_running, load.decode_context_tokens) == (2, 60)
    assert load.waiting_prefill_tokens == 20
    worker.run()
    load = worker.scheduler.load()
    assert load.waiting_prefill_tokens == load.decode_context_tokens == load.used_pages == 0
    assert load.free_pages + load.cached_pages == 24
    assert load.busy_seconds_total == len(worker.batches)
    worker.submit("a again", LONG, max_tokens=4)
    assert worker.scheduler.load().waiting_prefill_tokens == 4
    worker.run()
    load = worker.scheduler.load()
    assert (load.prompt_tokens_total, load.cached_tokens_total) == (120, 36)


# Ends from outside.


def test_cancelling_the_waiting_and_the_running() -> None:
    worker = Worker(max_sequences=2, max_batch_tokens=16)
    for number in range(3):
        worker.submit(f"r{number}", [number] * 12, max_tokens=30)
    worker.step()
    for number in range(3):
        worker.scheduler.cancel(f"r{number}", now=worker.now)
        worker.scheduler.cancel(f"r{number}", now=worker.now)
    worker.scheduler.cancel("never seen", now=worker.now)
    worker.check_after_flush()
    for number in range(3):
        assert worker.output(f"r{number}").finish_reason is FinishReason.CANCELLED
    load = worker.scheduler.load()
    assert worker.scheduler.num_live == 0 and load.used_pages == 0
    assert load.tree_pages == 4  # What was computed of it stays useful.


def test_cancelling_within_a_batch_waits_for_its_end_and_drops_the_token() -> None:
    worker = Worker(max_batch_tokens=16)
    worker.submit("decoding", [1] * 8, max_tokens=30)
    worker.step()
    worker.submit("prefilling", [2] * 40, max_tokens=30)
    worker.submit("goes-on", [1] * 8, max_tokens=5)
    worker.step()
    batch = worker.schedule()
    assert batch is not None
    known = len(worker.output("decoding").tokens)
    for request_id in ("decoding", "prefilling"):
        worker.scheduler.cancel(request_id, now=worker.now)
        worker.scheduler.cancel(request_id, now=worker.now)
    worker.take(worker.scheduler.flush())
    assert worker.output("decoding").finish_reason is None
    worker.scheduler.check()
    worker.complete(batch)
    worker.check()
    for request_id, num_tokens in (("decoding", known), ("prefilling", 0)):
        received = worker.output(request_id)
        assert received.finish_reason is FinishReason.CANCELLED
        assert len(received.tokens) == num_tokens
    worker.run()
    assert len(worker.output("goes-on").tokens) == 5


def test_deadlines_end_the_waiting_and_the_running() -> None:
    worker = Worker(max_sequences=1)
    worker.submit("running", [1] * 8, max_tokens=30, deadline_at=5.0)
    worker.submit("waiting", [2] * 8, max_tokens=30, deadline_at=3.0)
    worker.submit("in-time", [3] * 8, max_tokens=3, deadline_at=50.0)
    worker.run()
    assert worker.output("running").finish_reason is FinishReason.DEADLINE
    assert worker.output("running").tokens
    assert worker.output("waiting").finish_reason is FinishReason.DEADLINE
    assert worker.output("in-time").finish_reason is FinishReason.LENGTH


def test_a_passed_deadline_alone_leaves_nothing_to_compute() -> None:
    worker = Worker()
    worker.submit("late", [1] * 8, deadline_at=worker.now)
    assert worker.schedule() is None
    worker.check_after_flush()
    assert worker.output("late").finish_reason is FinishReason.DEADLINE


def test_a_failing_engine_ends_its_batch_and_nobody_else() -> None:
    worker = Worker(max_sequences=2)
    worker.submit("a", [1] * 12, max_tokens=9)
    worker.step()
    worker.submit("b", [2] * 12, max_tokens=9)
    worker.submit("c", [3] * 12, max_tokens=9)
    batch = worker.schedule()
    assert batch is not None
    worker.scheduler.cancel("a", now=worker.now)
    worker.take(worker.scheduler.fail(batch, error="Out of memory.", now=worker.now))
    worker.check()
    assert worker.output("a").finish_reason is FinishReason.CANCELLED
    assert worker.output("b").finish_reason is FinishReason.ERROR
    assert worker.output("b").error == "Out of memory."
    assert worker.scheduler.load().tree_pages == 3  # a's prompt; nothing of the failed step.
    worker.run()
    assert len(worker.output("c").tokens) == 9


def test_a_later_attempt_replaces_an_earlier_one() -> None:
    worker = Worker()
    worker.submit("r", LONG, max_tokens=9)
    worker.step()
    batch = worker.schedule()
    assert batch is not None
    worker.submit("r", LONG, max_tokens=9, attempt=2)
    worker.complete(batch)
    worker.check()
    assert worker.output("r", 1).finish_reason is FinishReason.CANCELLED
    worker.scheduler.add(worker.requests["r", 2], now=worker.now)  # A duplicate: no effect.
    worker.run()
    assert len(worker.output("r", 2).tokens) == 9


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_no_work_is_spent_on_who_cannot_be_in_time_while_others_wait(policy: str) -> None:
    worker = Worker(policy=policy, max_sequences=1)
    worker.submit("running", [1] * 8, max_tokens=10, deadline_at=50.0)
    worker.step()
    long = {"max_tokens": 30, "predicted_output_tokens": 30}
    worker.submit("lost", [1] * 8 + [2], deadline_at=15.0, priority=1, **long)
    worker.submit("newer", [3] * 8, max_tokens=3, deadline_at=16.0, predicted_output_tokens=3)
    worker.run()
    assert worker.output("newer").finish_reason is FinishReason.LENGTH
    assert worker.output("lost").finish_reason is FinishReason.DEADLINE
    assert len(worker.output("lost").tokens) < 4


def test_who_cannot_be_in_time_runs_where_nobody_else_wants_to() -> None:
    worker = Worker(max_sequences=1, policy="fcfs")
    worker.submit("lost", [2] * 8, max_tokens=30, deadline_at=5.0, predicted_output_tokens=30)
    worker.submit("wrong", [3] * 8, max_tokens=5, deadline_at=20.0, predicted_output_tokens=300)
    worker.run()
    assert worker.output("lost").tokens
    assert worker.output("wrong").finish_reason is FinishReason.LENGTH
