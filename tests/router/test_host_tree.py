"""Prefixes in a worker's host memory: worth less than on its device, more than nothing."""

import random
from dataclasses import replace

import pytest
from routing_helpers import COST, pages, route, synced_scheduler, worker_spec
from scheduler_helpers import stored, view

from preble.events import CacheEvents, CacheSnapshot, Evicted, Stored
from preble_router.journal import Journal, placements, replay
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    Progress,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
    WorkerLost,
)

PATH = pages(random.Random(3), 20)
TOKENS = 20 * 16
TOKEN_SECONDS = 5e-6
"""A tenth of what computing one takes."""


def on_host(worker_id: str, seq: int, *events: Stored | Evicted) -> CacheChanged:
    return CacheChanged(worker_id, CacheEvents(1, seq, (), events))


def cluster(
    policy: str = "preble", *, token_seconds: float = TOKEN_SECONDS, ids: str = "abc"
) -> GlobalScheduler:
    """Idle workers with host memory, all their caches empty."""
    scheduler = synced_scheduler(policy, ())
    for worker_id in ids:
        spec = replace(
            worker_spec(worker_id), host_capacity_tokens=800_000, host_token_seconds=token_seconds
        )
        scheduler.observe(WorkerJoined(spec), now=0.0)
        scheduler.observe(SnapshotReceived(worker_id, CacheSnapshot(1, 0, ())), now=0.0)
    return scheduler


def cached(scheduler: GlobalScheduler, path: bytes = PATH) -> dict[str, int]:
    explained = scheduler.explain(route("?", path), now=0.0)
    return {c.worker_id: c.cached_tokens for c in explained.candidates}


@pytest.mark.parametrize("policy", ["preble", "longest_prefix", "e2"])
def test_host_memory_is_better_than_nothing_and_worse_than_the_device(policy: str) -> None:
    for device, host, chosen in (("", "b", "b"), ("c", "b", "c")):
        scheduler = cluster(policy)
        scheduler.observe(on_host(host, 1, Stored(PATH)), now=0.0)
        if device:
            scheduler.observe(stored(device, 1, PATH), now=0.0)
        placement = scheduler.place(route("r", PATH), now=0.0)
        assert (placement.worker_id, placement.cached_tokens) == (chosen, TOKENS)
        scheduler.check()


def test_it_counts_in_seconds_of_copying() -> None:
    scheduler = cluster()
    scheduler.observe(on_host("b", 1, Stored(PATH)), now=0.0)
    scheduler.observe(stored("c", 1, PATH), now=0.0)
    own = {
        c.worker_id: c.terms["own"] for c in scheduler.explain(route("r", PATH), now=0.0).candidates
    }
    copying = TOKENS * TOKEN_SECONDS
    assert own["b"] - own["c"] == pytest.approx(copying, rel=0.2)
    assert own["a"] > TOKENS * COST.per_prefill_token


def test_where_copying_takes_longer_it_counts_for_nothing() -> None:
    scheduler = cluster(token_seconds=1e-3)
    scheduler.observe(on_host("b", 1, Stored(PATH)), now=0.0)
    explained = scheduler.explain(route("r", PATH), now=0.0)
    own = {c.worker_id: c.terms["own"] for c in explained.candidates}
    assert own["b"] == own["a"]


def test_of_a_path_in_both_places_each_token_counts_once() -> None:
    scheduler = cluster()
    scheduler.observe(stored("a", 1, PATH[: 8 * 12]), now=0.0)
    scheduler.observe(on_host("a", 2, Stored(PATH[: 8 * 15])), now=0.0)
    scheduler.observe(on_host("b", 1, Stored(PATH[: 8 * 15])), now=0.0)
    assert cached(scheduler) == {"a": 15 * 16, "b": 15 * 16, "c": 0}
    assert scheduler.place(route("r", PATH), now=0.0).worker_id == "a"


def test_the_last_token_is_computed_wherever_the_others_are() -> None:
    scheduler = cluster()
    scheduler.observe(on_host("b", 1, Stored(PATH)), now=0.0)
    placement = scheduler.place(route("r", PATH, extra_tokens=0), now=0.0)
    assert placement.cached_tokens == TOKENS - 16


def test_what_the_worker_says_last_holds() -> None:
    scheduler = cluster()
    scheduler.observe(on_host("b", 1, Stored(PATH)), now=0.0)
    scheduler.observe(on_host("b", 2, Evicted(PATH, 5)), now=0.0)
    assert cached(scheduler)["b"] == 5 * 16
    scheduler.observe(stored("b", 3, PATH[: 8 * 2]), now=0.0)
    assert cached(scheduler)["b"] == 5 * 16
    snapshot = CacheSnapshot(1, 7, (PATH[:8],), (PATH[: 8 * 9],))
    scheduler.observe(SnapshotReceived("b", snapshot), now=0.0)
    assert cached(scheduler)["b"] == 9 * 16
    assert view(scheduler, "b").held_pages == 1
    scheduler.check()


@pytest.mark.parametrize("end", ["lost", "new process"])
def test_a_dead_process_holds_nothing(end: str) -> None:
    scheduler = cluster()
    scheduler.observe(on_host("b", 1, Stored(PATH)), now=0.0)
    if end == "lost":
        scheduler.observe(WorkerLost("b"), now=0.0)
        scheduler.observe(WorkerJoined(worker_spec("b")), now=0.0)
    else:
        scheduler.observe(CacheChanged("b", CacheEvents(2, 1, ())), now=0.0)
    scheduler.check()
    assert cached(scheduler).get("b", 0) == 0


def test_belief_is_held_against_what_the_worker_found() -> None:
    scheduler = cluster()
    scheduler.observe(on_host("b", 1, Stored(PATH)), now=0.0)
    placement = scheduler.place(route("r", PATH), now=0.0)
    first = Progress("r", 1, 1, cached_tokens=TOKENS)
    load = replace(view(scheduler, "b").load)
    scheduler.observe(StepReport(worker_id="b", load=load, progress=(first,)), now=0.1)
    seen = view(scheduler, placement.worker_id)
    assert seen.predicted_cached_total == seen.actual_cached_total == TOKENS
    scheduler.check()


def test_a_journal_keeps_what_was_said_of_host_memory() -> None:
    lines: list[dict[str, object]] = []
    scheduler = Journal(lines.append).start(make_policy("preble"), rng=random.Random(1))
    for worker_id in "abc":
        spec = replace(worker_spec(worker_id), host_token_seconds=TOKEN_SECONDS)
        scheduler.observe(WorkerJoined(spec), now=0.0)
        scheduler.observe(SnapshotReceived(worker_id, CacheSnapshot(1, 0, ())), now=0.0)
    scheduler.observe(on_host("b", 1, Stored(PATH)), now=0.0)
    scheduler.place(route("r", PATH), now=0.0)
    assert replay(lines) == placements(lines)
    assert placements(lines)[0].worker_id == "b"
