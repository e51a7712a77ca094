"""Scenes from the life of one worker's scheduler."""

import numpy as np
import pytest
from worker_helpers import CacheView, Worker, expected_tokens, make_request

from preble.errors import ConfigError
from preble.page_keys import pack_tokens, page_keys
from preble.types import FinishReason
from preble_worker.config import SchedulerConfig
from preble_worker.policies import POLICY_NAMES
from preble_worker.prefills import FOLLOW_STEPS
from preble_worker.scheduler import LocalScheduler

LONG = list(range(40))
"""A prompt of ten pages."""


# One request.


def test_a_request_yields_the_models_tokens_and_ends_by_length() -> None:
    worker = Worker()
    worker.submit("r", LONG, max_tokens=5, seed=9)
    worker.run()
    worker.assert_complete()
    received = worker.output("r")
    assert received.finish_reason is FinishReason.LENGTH and len(received.tokens) == 5
    assert received.cached_tokens == 0


def test_a_prompt_is_computed_in_chunks_of_the_budget() -> None:
    worker = Worker(max_batch_tokens=16)
    worker.submit("r", LONG, max_tokens=3)
    worker.run()
    assert [batch.counts.tolist() for batch in worker.batches] == [[16], [16], [8], [1], [1]]
    assert [batch.starts.tolist() for batch in worker.batches] == [[0], [16], [32], [40], [41]]
    assert [batch.samples.tolist() for batch in worker.batches][:3] == [[False], [False], [True]]
    assert [batch.step for batch in worker.batches] == [1, 2, 3, 4, 5]


def test_attention_and_context_are_the_cost_models_terms() -> None:
    worker = Worker(max_batch_tokens=16)
    worker.submit("r", LONG, max_tokens=3)
    worker.run()
    assert [batch.attention for batch in worker.batches] == [128.0, 384.0, 288.0, 0.0, 0.0]
    assert [batch.context_tokens for batch in worker.batches] == [0, 0, 0, 40, 41]


def test_the_stop_token_belongs_to_the_output() -> None:
    worker = Worker(eos_token_ids=tuple(range(0, 50, 3)))
    worker.submit("r", LONG, max_tokens=40)
    worker.run()
    worker.assert_complete()
    received = worker.output("r")
    assert received.finish_reason is FinishReason.STOP
    assert received.tokens[-1] % 3 == 0 and all(token % 3 for token in received.tokens[:-1])


def test_ignoring_eos_still_obeys_the_requests_own_stop_tokens() -> None:
    every = tuple(range(50))
    worker = Worker(eos_token_ids=every)
    worker.submit("eos", LONG, max_tokens=6)
    worker.submit("ignored", LONG, max_tokens=6, ignore_eos=True)
    free_run = expected_tokens(worker.requests["ignored", 1], worker.config)
    last = next(token for token in free_run[2:] if token not in free_run[:2])
    worker.submit("own", LONG, max_tokens=6, ignore_eos=True, stop_token_ids=(last,))
    worker.run()
    worker.assert_complete()
    lengths = {name: len(worker.output(name).tokens) for name in ("eos", "ignored", "own")}
    assert lengths == {"eos": 1, "ignored": 6, "own": free_run.index(last) + 1}


def test_long_outputs_lose_nothing_where_buffers_turn_over() -> None:
    worker = Worker(num_pages=200, context_tokens=400)
    worker.submit("a", [1, 2, 3], max_tokens=300)
    worker.submit("b", [4] * 50, max_tokens=150, seed=2)
    worker.run()
    worker.assert_complete()
    # What was generated can be shared exactly as if it had been a prompt.
    path = [1, 2, 3, *worker.output("a").tokens]
    worker.submit("again", path, max_tokens=2)
    worker.run()
    assert worker.output("again").cached_tokens == (len(path) - 1) // 4 * 4


@pytest.mark.parametrize("num_delivered", [1, 62, 63, 64])
def test_a_resumed_attempts_tokens_are_shared_exactly_too(num_delivered: int) -> None:
    worker = Worker(num_pages=200, context_tokens=400)
    delivered = [5] * num_delivered
    request = make_request(
        "r", [1, 2, 3, *delivered], max_tokens=160, attempt=2, num_delivered=num_delivered
    )
    worker.add(request)
    worker.run()
    worker.assert_complete()
    path = [1, 2, 3, *delivered, *worker.output("r", 2).tokens]
    worker.submit("again", path, max_tokens=2)
    worker.run()
    assert worker.output("again").cached_tokens == (len(path) - 1) // 4 * 4


def test_a_resumed_attempt_goes_on_where_the_first_one_stopped() -> None:
    worker = Worker()
    worker.submit("r", LONG, max_tokens=12, seed=5)
    worker.run()
    whole = worker.output("r").tokens
    other = Worker()
    resumed = make_request(
        "r", [*LONG, *whole[:7]], max_tokens=12, seed=5, attempt=2, num_delivered=7
    )
    other.add(resumed)
    other.run()
    other.assert_complete()
    assert other.output("r", 2).tokens == whole[7:]
    assert other.batches[0].tables.prompt_hash[0] == worker.batches[0].tables.prompt_hash[0]


def test_an_attempt_with_nothing_left_to_generate_ends_at_once() -> None:
    worker = Worker()
    worker.add(make_request("r", [1, 2, 3, 4], max_tokens=2, attempt=2, num_delivered=2))
    worker.run()
    assert worker.output("r", 2).finish_reason is FinishReason.LENGTH
    assert not worker.batches


# What can never run.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"context_tokens": 48},
            "The prompt of 40 tokens and up to 9 output tokens make 49, more than the worker's "
            "context of 48 tokens.",
        ),
        (
            {"num_pages": 12},
            "The prompt of 40 tokens and up to 9 output tokens make 49, more than the worker's "
            "KV cache of 48 tokens.",
        ),
    ],
)
def test_what_can_never_fit_is_refused_with_both_numbers(
    options: dict[str, int], sentence: str
) -> None:
    worker = Worker(**options)
    worker.submit("too-long", LONG, max_tokens=9)
    assert worker.scheduler.has_work and worker.scheduler.num_live == 0
    worker.take(worker.scheduler.flush())
    assert not worker.scheduler.has_work
    received = worker.output("too-long")
    assert received.finish_reason is FinishReason.REFUSED and received.error == sentence
    worker.submit("just-fits", LONG, max_tokens=8)
    worker.run()
    assert len(worker.output("just-fits").tokens) == 8


def test_an_empty_prompt_is_refused() -> None:
    worker = Worker()
    worker.submit("r", [])
    worker.run()
    assert worker.output("r").finish_reason is FinishReason.REFUSED


def test_an_unknown_policy_is_the_operators_mistake() -> None:
    with pytest.raises(ConfigError, match="allowed are"):
        LocalScheduler(SchedulerConfig(num_pages=4, policy="best"), epoch=1)


# Batches.


def test_decodes_come_first_and_prompts_share_the_rest() -> None:
    worker = Worker(max_batch_tokens=16)
    worker.submit("a", [1] * 8, max_tokens=20)
    worker.submit("b", [2] * 30, max_tokens=20)
    worker.step()
    assert worker.batches[-1].counts.tolist() == [8, 8]
    worker.step()
    batch = worker.batches[-1]
    assert batch.num_decodes == 1 and batch.counts.tolist() == [1, 15]
    worker.submit("c", [3] * 30, max_tokens=20)
    worker.step()
    assert worker.batches[-1].counts.tolist() == [1, 7, 8]
    worker.run()
    worker.assert_complete()


def test_no_more_requests_run_than_there_are_slots_or_tokens() -> None:
    for options in ({"max_sequences": 3}, {"max_batch_tokens": 3}):
        worker = Worker(**options)
        for number in range(10):
            worker.submit(f"r{number}", [number] * 6, max_tokens=5)
        worker.run()
        worker.assert_complete()
        assert max(len(batch.slots) for batch in worker.batches) == 3


def test_composition_changes_with_slots_and_not_with_growth() -> None:
    worker = Worker()
    worker.submit("a", [1] * 8, max_tokens=20)
    worker.step()
    worker.step()
    compositions = [batch.composition for batch in worker.batches]
    for _ in range(6):
        worker.step()
    assert {batch.composition for batch in worker.batches[2:]} == {compositions[1]}
    worker.submit("b", [2] * 8, max_tokens=2)
    for _ in range(3):
        worker.step()
    joined, both, alone = [batch.composition for batch in worker.batches[-3:]]
    assert compositions[1] < joined <= both < alone


def test_a_slot_that_changes_hands_is_another_composition() -> None:
    worker = Worker(max_sequences=1)
    for number in range(3):
        worker.submit(f"r{number}", [number] * 8, max_tokens=1)
    worker.run()
    assert [batch.slots.tolist() for batch in worker.batches] == [[0], [0], [0]]
    assert len({batch.composition for batch in worker.batches}) == 3


def test_an_adopted_page_is_another_composition() -> None:
    """The last page of a repeated prompt is computed again, then given up for the tree's."""
    worker = Worker()
    worker.submit("first", LONG, max_tokens=1)
    worker.run()
    worker.submit("second", LONG, max_tokens=3)
    worker.run()
    prefill, decode, last = worker.batches[-3:]
    assert prefill.slots.tolist() == decode.slots.tolist()
    assert prefill.composition < decode.composition == last.composition


# Sharing.


def test_the_last_prompt_token_is_always_computed() -> None:
    worker = Worker()
    for request_id in ("first", "second"):
        worker.submit(request_id, LONG, max_tokens=2)
        worker.run()
    assert worker.output("second").cached_tokens == 36
    assert worker.engine.num_prefill_tokens == 40 + 4


def test_requests_with_the_same_new_prompt_compute_it_once() -> None:
    worker = Worker(max_batch_tokens=16)
    for number in range(8):
        worker.submit(f"r{number}", [*LONG, number, number], max_tokens=3, seed=number)
    worker.run()
    worker.assert_complete()
    assert worker.engine.num_prefill_tokens == 42 + 7 * 2


def test_followers_branch_off_as_soon_as_their_part_is_there() -> None:
    worker = Worker(max_batch_tokens=16)
    worker.submit("long", LONG, max_tokens=2)
    worker.submit("short", [*LONG[:8], 49, 49], max_tokens=2)
    worker.step()
    assert worker.scheduler.load().num_waiting == 1
    worker.step()
    assert worker.scheduler.load().num_waiting == 1  # All tokens went to the one before it.
    worker.run()
    assert worker.output("short").cached_tokens == 8


def test_a_follower_goes_its_own_way_when_nothing_comes() -> None:
    """The one who computes the prefix is starved by decodes; the other does not wait for ever."""
    worker = Worker(max_batch_tokens=4, max_sequences=4)
    worker.submit("leader", LONG, max_tokens=2)
    worker.step()
    worker.submit("follower", LONG, max_tokens=2)
    waits = 0
    while worker.scheduler.load().num_waiting:
        worker.step()
        waits += 1
    assert waits >= FOLLOW_STEPS
    worker.run()
    worker.assert_complete()
    assert worker.output("follower").cached_tokens == 36


def test_a_cancelled_leader_frees_its_followers() -> None:
    worker = Worker(max_batch_tokens=16)
    worker.submit("leader", LONG, max_tokens=2)
    worker.submit("follower", LONG, max_tokens=2)
    worker.step()
    worker.scheduler.cancel("leader", now=worker.now)
    worker.step()
    assert worker.scheduler.load().num_waiting == 0
    worker.run()
    assert worker.output("follower").cached_tokens == 16
    assert worker.engine.num_prefill_tokens == 40


def test_tenants_never_share() -> None:
    worker = Worker()
    for tenant in ("", "a", "b"):
        worker.submit(f"r{tenant}", LONG, max_tokens=1, namespace=tenant)
        worker.run()
        assert worker.output(f"r{tenant}").cached_tokens == 0
    assert worker.scheduler.load().tree_pages == 30


def test_without_prefix_caching_everything_is_computed_and_nothing_told() -> None:
    worker = Worker(prefix_caching=False)
    for number in range(4):
        worker.submit(f"r{number}", LONG, max_tokens=2)
    worker.run()
    worker.assert_complete()
    assert worker.engine.num_prefill_tokens == 160
    assert worker.view.seq == 0 and worker.scheduler.load().free_pages == 64


def test_a_chunk_is_shareable_as_soon_as_it_is_computed_and_output_at_the_end() -> None:
    worker = Worker(max_batch_tokens=16)
    worker.submit("r", LONG, max_tokens=9)
    sizes = []
    while worker.scheduler.num_live:
        worker.step()
        sizes.append(len(worker.view.pages))
    assert sizes == [4, 8, *[10] * 8, 12]
    path = page_keys(pack_tokens([*LONG, *worker.output("r").tokens]), page_tokens=4)
    assert path in worker.view.pages
    assert worker.view.seq == 4  # Three chunks and the end, each one batch of events.


def test_events_lead_from_any_snapshot_to_any_later_one() -> None:
    worker = Worker(num_pages=24)
    snapshots, batches = [worker.scheduler.snapshot()], []
    for number in range(30):
        prompt = [number % 3] * 12 + [number % 5] * 8 + [number]
        worker.submit(f"r{number}", prompt, max_tokens=7)
        batch = worker.schedule()
        assert batch is not None
        tokens = worker.engine.run(batch)
        outputs = worker.scheduler.complete(batch, tokens, now=worker.now)
        worker.take(outputs)
        if outputs.cache is not None:
            batches.append(outputs.cache)
            snapshots.append(worker.scheduler.snapshot())
    assert [snapshot.seq for snapshot in snapshots] == list(range(len(batches) + 1))
    for start, snapshot in enumerate(snapshots):
        view = CacheView(snapshot.paths, seq=snapshot.seq)
        for events, later in zip(batches[start:], snapshots[start + 1 :], strict=True):
            view.apply(events)
            assert view.pages == CacheView(later.paths).pages


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


# Both doors to the outputs.


def test_columns_and_objects_tell_the_same() -> None:
    worker = Worker(max_batch_tokens=64)
    for number in range(6):
        worker.submit(f"r{number}", [number] * 8, max_tokens=3 + number)
    worker.step()
    seen_columns = 0
    while (batch := worker.scheduler.schedule(now=0.0)) is not None:
        outputs = worker.scheduler.complete(batch, worker.engine.run(batch), now=0.0)
        worker.take(outputs)
        decoded = outputs.decoded
        seen_columns += len(decoded)
        assert [o.request_id for o in decoded] == decoded.request_ids
        assert [o.position for o in decoded] == decoded.positions.tolist()
        packed = b"".join(output.tokens for output in decoded)
        assert np.array_equal(np.frombuffer(packed, np.uint32), decoded.tokens)
        assert outputs.outputs == [*outputs.others, *decoded]
    assert seen_columns == sum(range(1, 7))
    worker.assert_complete()
