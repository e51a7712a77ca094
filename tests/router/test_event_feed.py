"""The feed decides about loss: what to apply, what to hold back, when to ask for a snapshot."""

import random
from itertools import pairwise

from preble.events import CacheEvents, CacheSnapshot, Stored
from preble_router.event_feed import (
    DIGEST_PAUSE_SECONDS,
    DOUBT_SECONDS,
    HELD_BATCHES_MAX,
    RETRY_SECONDS,
    EventFeed,
    FeedStep,
)


def batch(seq: int, epoch: int = 1) -> CacheEvents:
    return CacheEvents(epoch, seq, ())


def snapshot(seq: int, epoch: int = 1) -> CacheSnapshot:
    return CacheSnapshot(epoch, seq, ())


def new_feed(now: float = 0.0) -> EventFeed:
    return EventFeed(1, now=now, rng=random.Random(0))


def synced_feed(seq: int = 0) -> EventFeed:
    feed = new_feed()
    feed.receive_snapshot(snapshot(seq), now=0.0)
    return feed


def numbers(step: FeedStep) -> list[int]:
    return [b.seq for b in step.batches]


def test_batches_in_order_are_applied_one_by_one() -> None:
    feed = synced_feed(seq=4)
    assert [numbers(feed.receive(batch(seq), now=0.0)) for seq in (5, 6, 7)] == [[5], [6], [7]]
    assert feed.seq == 7 and feed.ask_at() is None


def test_an_old_batch_is_ignored() -> None:
    feed = synced_feed(seq=4)
    assert numbers(feed.receive(batch(4), now=0.0)) == []
    assert feed.is_synced and feed.seq == 4


def test_a_joining_worker_is_not_asked_for_the_snapshot_it_sends_anyway() -> None:
    feed = new_feed(now=10.0)
    assert not feed.ask(now=10.0)
    assert feed.ask_at() == 10.0 + RETRY_SECONDS
    assert feed.ask(now=10.0 + RETRY_SECONDS)


def test_batches_before_the_first_snapshot_wait_for_it() -> None:
    feed = new_feed()
    for seq in (3, 4, 5):
        assert feed.receive(batch(seq), now=0.0) == FeedStep()
    step = feed.receive_snapshot(snapshot(4), now=0.1)
    assert step.snapshot is not None and numbers(step) == [5]
    assert feed.is_synced


def test_a_gap_asks_once_and_goes_on_behind_the_snapshot() -> None:
    feed = synced_feed()
    assert numbers(feed.receive(batch(2), now=0.0)) == []
    assert feed.ask(now=1.0)
    assert not feed.ask(now=1.1), "one request outstanding is enough"
    assert numbers(feed.receive(batch(3), now=0.0)) == []
    step = feed.receive_snapshot(snapshot(2), now=1.2)
    assert not step.forget and numbers(step) == [3]
    assert numbers(feed.receive(batch(4), now=0.0)) == [4]


def test_an_unanswered_request_is_repeated() -> None:
    feed = synced_feed()
    feed.receive(batch(7), now=0.0)
    assert feed.ask(now=1.0)
    assert not feed.ask(now=1.0 + RETRY_SECONDS / 2)
    assert feed.ask(now=1.0 + 1.5 * RETRY_SECONDS)


def test_a_second_gap_behind_the_snapshot_asks_again() -> None:
    feed = synced_feed()
    feed.receive(batch(2), now=0.0)
    assert feed.ask(now=1.0)
    feed.receive(batch(5), now=0.0)
    step = feed.receive_snapshot(snapshot(3), now=1.1)
    assert numbers(step) == [] and not feed.is_synced
    assert feed.ask(now=1.1 + DOUBT_SECONDS[1])
    assert numbers(feed.receive_snapshot(snapshot(4), now=1.2)) == [5]


def test_a_snapshot_older_than_the_view_is_ignored() -> None:
    feed = synced_feed(seq=9)
    assert feed.receive_snapshot(snapshot(8), now=1.0) == FeedStep()
    assert feed.seq == 9


def test_another_epoch_forgets_at_once() -> None:
    feed = synced_feed(seq=9)
    step = feed.receive(batch(1, epoch=2), now=0.0)
    assert step.forget and not step.batches
    assert not feed.has_view and feed.ask(now=1.0)
    step = feed.receive_snapshot(snapshot(0, epoch=2), now=1.1)
    assert numbers(step) == [1] and feed.has_view


def test_a_snapshot_of_another_epoch_replaces_the_view() -> None:
    feed = synced_feed(seq=9)
    step = feed.receive_snapshot(snapshot(2, epoch=2), now=1.0)
    assert step.forget and step.snapshot is not None
    assert feed.epoch == 2 and feed.seq == 2


def test_a_digest_that_disagrees_asks() -> None:
    feed = synced_feed()
    feed.receive_digest(agrees=True, now=0.5)
    assert feed.is_synced
    feed.receive_digest(agrees=False, now=1.0)
    assert not feed.is_synced and not feed.ask(now=1.0)
    assert feed.ask(now=1.0 + DOUBT_SECONDS[1])


def test_a_digest_that_never_agrees_asks_ever_more_rarely() -> None:
    feed = synced_feed()
    asked = []
    now = 0.0
    while now < 200.0:
        now += 0.1
        feed.receive_digest(agrees=False, now=now)
        if feed.ask(now=now):
            asked.append(now)
            feed.receive_snapshot(snapshot(0), now=now)
    gaps = [round(b - a) for a, b in pairwise(asked)]
    assert 5 <= len(asked) <= 10
    assert gaps == sorted(gaps) and gaps[0] >= DIGEST_PAUSE_SECONDS


def test_a_digest_out_of_sync_says_nothing() -> None:
    feed = synced_feed()
    feed.receive(batch(3), now=0.0)
    assert feed.ask(now=1.0)
    feed.receive_digest(agrees=False, now=1.1)
    assert not feed.ask(now=1.2)


def test_held_batches_are_bounded_and_the_loss_shows() -> None:
    feed = new_feed()
    for seq in range(1, HELD_BATCHES_MAX + 11):
        feed.receive(batch(seq), now=0.0)
    step = feed.receive_snapshot(snapshot(5), now=1.0)
    assert numbers(step) == [] and not feed.is_synced
    assert feed.ask(now=1.5)
    step = feed.receive_snapshot(snapshot(10), now=1.1)
    assert len(step.batches) == HELD_BATCHES_MAX and feed.is_synced


def asking_feed(number: int = 1) -> EventFeed:
    """In sync as of batch 1, then asking for the `number`th time; a batch 3 is held."""
    feed = synced_feed(seq=1)
    for at in range(1, number):
        feed.receive(batch(feed.seq + 2), now=float(at))
        assert feed.ask(now=at + 0.5)
        feed.receive_snapshot(CacheSnapshot(1, feed.seq + 2, (), number=feed.number), now=at + 0.6)
    feed.receive(batch(feed.seq + 2), now=float(number))
    assert feed.ask(now=number + 0.5)
    return feed


def difference(seq: int, number: int, epoch: int = 1) -> CacheSnapshot:
    return CacheSnapshot(epoch, seq, (), number=number, num_buckets=16)


def test_batches_out_of_order_heal_without_asking() -> None:
    feed = synced_feed()
    assert numbers(feed.receive(batch(3), now=1.0)) == []
    assert numbers(feed.receive(batch(2), now=1.0)) == []
    assert not feed.is_synced and not feed.ask(now=1.05)
    assert numbers(feed.receive(batch(1), now=1.06)) == [1, 2, 3]
    assert feed.is_synced and not feed.ask(now=9.0)


def test_a_digest_that_agrees_after_all_lays_the_doubt() -> None:
    feed = synced_feed()
    feed.receive_digest(agrees=False, now=1.0)
    assert numbers(feed.receive(batch(1), now=1.01)) == [1], "the view goes on meanwhile"
    feed.receive_digest(agrees=True, now=1.02)
    assert feed.is_synced and not feed.ask(now=9.0)


def test_workers_in_doubt_at_once_are_not_asked_at_once() -> None:
    feeds = [EventFeed(1, now=0.0, rng=random.Random(seed)) for seed in range(20)]
    for feed in feeds:
        feed.receive_snapshot(snapshot(0), now=0.0)
        feed.receive(batch(2), now=1.0)
    due = [feed.ask_at() for feed in feeds]
    assert len(set(due)) == 20
    low, high = DOUBT_SECONDS
    assert all(at is not None and 1.0 + low <= at <= 1.0 + high for at in due)


def test_a_difference_counts_only_as_the_answer_to_the_last_question() -> None:
    feed = asking_feed(number=2)
    assert feed.receive_snapshot(difference(9, number=1), now=3.0) == FeedStep()
    assert feed.receive_snapshot(difference(9, number=2), now=3.0).snapshot is not None
    assert feed.is_synced and feed.seq == 9 and feed.differences_total == 1
    assert feed.receive_snapshot(difference(9, number=2), now=3.0) == FeedStep(), "twice"


def test_the_difference_from_a_former_process_shows_the_new_one() -> None:
    feed = asking_feed()
    step = feed.receive_snapshot(difference(0, number=1, epoch=2), now=2.0)
    assert step.forget and step.snapshot is None
    assert feed.ask(now=2.5) and not feed.wants_difference


def test_the_view_stands_still_while_a_difference_is_awaited() -> None:
    feed = asking_feed()
    assert numbers(feed.receive(batch(2), now=2.0)) == []
    step = feed.receive_snapshot(difference(2, number=1), now=2.1)
    assert numbers(step) == [] and feed.is_synced, "3 came before the question: not the worker's"


def test_a_number_no_worker_said_is_not_waited_for() -> None:
    feed = synced_feed()
    feed.receive(batch(10**9), now=1.0)
    assert feed.ask(now=2.0)
    feed.receive_snapshot(CacheSnapshot(1, 4, (), number=feed.number), now=2.1)
    assert feed.is_synced and numbers(feed.receive(batch(5), now=2.2)) == [5]


def test_a_path_of_broken_keys_counts_as_lost() -> None:
    feed = synced_feed()
    broken = CacheEvents(1, 1, (Stored(b"1234567"),))
    assert feed.receive(broken, now=0.0) == FeedStep() and feed.seq == 0
    assert feed.receive_snapshot(CacheSnapshot(1, 1, (b"123",)), now=0.0) == FeedStep()


def test_an_older_process_is_not_heard() -> None:
    feed = synced_feed(seq=4)
    assert feed.receive(batch(9, epoch=0), now=1.0) == FeedStep()
    assert feed.is_synced and feed.has_view


def test_a_difference_that_did_not_help_is_followed_by_a_snapshot() -> None:
    feed = synced_feed()
    wanted = []
    for now in (1.0, 3.0):
        feed.receive_digest(agrees=False, now=now)
        assert feed.ask(now=now + DOUBT_SECONDS[1])
        wanted.append(feed.wants_difference)
        feed.receive_snapshot(CacheSnapshot(1, 0, (), number=feed.number), now=now + 0.5)
    assert wanted == [True, False]
    feed.receive_digest(agrees=True, now=4.0)
    assert feed.wants_difference
