"""Scenes of requests that share prefixes, and of what the worker tells about its cache."""

from worker_helpers import CacheView, Worker

from preble.page_keys import pack_tokens, page_keys
from preble_worker.prefills import FOLLOW_STEPS

LONG = list(range(40))
"""A prompt of ten pages."""


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
