"""The feed decides about loss: what to apply, what to hold back, when to ask for a snapshot."""

from itertools import pairwise

from preble.events import CacheEvents, CacheSnapshot
from preble_router.event_feed import (
    DIGEST_PAUSE_SECONDS,
    HELD_BATCHES_MAX,
    RETRY_SECONDS,
    EventFeed,
    FeedStep,
)


def batch(seq: int, epoch: int = 1) -> CacheEvents:
    return CacheEvents(epoch, seq, ())


def snapshot(seq: int, epoch: int = 1) -> CacheSnapshot:
    return CacheSnapshot(epoch, seq, ())


def synced_feed(seq: int = 0) -> EventFeed:
    feed = EventFeed(1, now=0.0)
    feed.receive_snapshot(snapshot(seq), now=0.0)
    return feed


def numbers(step: FeedStep) -> list[int]:
    return [b.seq for b in step.batches]


def test_batches_in_order_are_applied_one_by_one() -> None:
    feed = synced_feed(seq=4)
    assert [numbers(feed.receive(batch(seq))) for seq in (5, 6, 7)] == [[5], [6], [7]]
    assert feed.seq == 7 and feed.ask_at() is None


def test_an_old_batch_is_ignored() -> None:
    feed = synced_feed(seq=4)
    assert numbers(feed.receive(batch(4))) == []
    assert feed.is_synced and feed.seq == 4


def test_a_joining_worker_is_not_asked_for_the_snapshot_it_sends_anyway() -> None:
    feed = EventFeed(1, now=10.0)
    assert not feed.ask(now=10.0)
    assert feed.ask_at() == 10.0 + RETRY_SECONDS
    assert feed.ask(now=10.0 + RETRY_SECONDS)


def test_batches_before_the_first_snapshot_wait_for_it() -> None:
    feed = EventFeed(1, now=0.0)
    for seq in (3, 4, 5):
        assert feed.receive(batch(seq)) == FeedStep()
    step = feed.receive_snapshot(snapshot(4), now=0.1)
    assert step.snapshot is not None and numbers(step) == [5]
    assert feed.is_synced


def test_a_gap_asks_once_and_goes_on_behind_the_snapshot() -> None:
    feed = synced_feed()
    assert numbers(feed.receive(batch(2))) == []
    assert feed.ask(now=1.0)
    assert not feed.ask(now=1.1), "one request outstanding is enough"
    assert numbers(feed.receive(batch(3))) == []
    step = feed.receive_snapshot(snapshot(2), now=1.2)
    assert not step.forget and numbers(step) == [3]
    assert numbers(feed.receive(batch(4))) == [4]


def test_an_unanswered_request_is_repeated() -> None:
    feed = synced_feed()
    feed.receive(batch(7))
    assert feed.ask(now=1.0)
    assert not feed.ask(now=1.0 + RETRY_SECONDS / 2)
    assert feed.ask(now=1.0 + RETRY_SECONDS)


def test_a_second_gap_behind_the_snapshot_asks_again() -> None:
    feed = synced_feed()
    feed.receive(batch(2))
    assert feed.ask(now=1.0)
    feed.receive(batch(5))
    step = feed.receive_snapshot(snapshot(3), now=1.1)
    assert numbers(step) == [] and not feed.is_synced
    assert feed.ask(now=1.1)
    assert numbers(feed.receive_snapshot(snapshot(4), now=1.2)) == [5]


def test_a_snapshot_older_than_the_view_is_ignored() -> None:
    feed = synced_feed(seq=9)
    assert feed.receive_snapshot(snapshot(8), now=1.0) == FeedStep()
    assert feed.seq == 9


def test_another_epoch_forgets_at_once() -> None:
    feed = synced_feed(seq=9)
    step = feed.receive(batch(1, epoch=2))
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
    assert not feed.is_synced and feed.ask(now=1.0)


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
    feed.receive(batch(3))
    assert feed.ask(now=1.0)
    feed.receive_digest(agrees=False, now=1.1)
    assert not feed.ask(now=1.2)


def test_held_batches_are_bounded_and_the_loss_shows() -> None:
    feed = EventFeed(1, now=0.0)
    for seq in range(1, HELD_BATCHES_MAX + 11):
        feed.receive(batch(seq))
    step = feed.receive_snapshot(snapshot(5), now=1.0)
    assert numbers(step) == [] and not feed.is_synced
    assert feed.ask(now=1.0)
    step = feed.receive_snapshot(snapshot(10), now=1.1)
    assert len(step.batches) == HELD_BATCHES_MAX and feed.is_synced
