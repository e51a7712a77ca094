"""Scenes from the life of one request, and of the batches it is in."""

import numpy as np
import pytest
from worker_helpers import Worker, expected_tokens, make_request

from preble.errors import ConfigError
from preble.types import FinishReason
from preble_worker.config import SchedulerConfig
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
