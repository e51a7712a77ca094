"""A journal replays to the same placements, through JSON, and under another policy."""

import json
import random
from typing import Any

import pytest
from routing_helpers import pages, route, worker_spec

from preble.events import CacheEvents, CacheSnapshot, Evicted, Stored
from preble.types import LoadReport
from preble_router.journal import Journal, placements, replay
from preble_router.policies import POLICY_NAMES, make_policy
from preble_router.stimuli import (
    CacheChanged,
    Progress,
    RequestFailed,
    RequestFinished,
    SnapshotReceived,
    StepReport,
    WorkerDrained,
    WorkerJoined,
    WorkerLost,
    WorkerSuspended,
)


def recorded(policy: str, seed: int = 3) -> list[str]:
    """The journal of a day in the life of a small cluster: every kind of input, JSON lines."""
    lines: list[str] = []
    rng = random.Random(seed)
    journal = Journal(lambda line: lines.append(json.dumps(line)))
    scheduler = journal.start(make_policy(policy), rng=random.Random(seed), window_seconds=30.0)
    for worker_id in "abcd":
        scheduler.observe(WorkerJoined(worker_spec(worker_id)), now=0.0)
        scheduler.observe(SnapshotReceived(worker_id, CacheSnapshot(1, 0, ())), now=0.0)
    documents = [pages(rng, 20) for _ in range(5)]
    seqs = dict.fromkeys("abcd", 0)
    now = 0.0
    for index in range(150):
        now += rng.random() * 0.2
        path = rng.choice(documents) + pages(rng, 3)
        placed = scheduler.place(route(f"r{index}", path, excluded={"d"}), now=now)
        worker_id = placed.worker_id
        seqs[worker_id] += 1
        events = (Stored(path), Evicted(path, 22))
        scheduler.observe(CacheChanged(worker_id, CacheEvents(1, seqs[worker_id], events)), now=now)
        load = LoadReport(waiting_prefill_tokens=rng.randrange(5000), free_pages=100)
        progress = (Progress(f"r{index}", 1, 1, placed.cached_tokens),)
        step = StepReport(worker_id=worker_id, load=load, step_seconds=0.01, progress=progress)
        scheduler.observe(step, now=now)
        if index % 3 == 0:
            scheduler.observe(RequestFinished(f"r{index}", 1, 30), now=now)
        elif index % 3 == 1:
            scheduler.observe(RequestFailed(f"r{index}", 1), now=now)
        scheduler.tick(now=now)
    scheduler.observe(WorkerSuspended("a", True), now=now)
    scheduler.observe(WorkerDrained("b"), now=now)
    scheduler.observe(WorkerLost("c"), now=now)
    scheduler.place(route("last", documents[0]), now=now)
    return lines


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_journal_replays_to_the_same_placements(policy: str) -> None:
    lines = parsed(recorded(policy))
    made = placements(lines)
    assert len(made) == 151
    assert replay(lines) == made


def test_a_journal_replays_under_another_policy() -> None:
    lines = parsed(recorded("round_robin"))
    made, other = placements(lines), replay(lines, make_policy("longest_prefix"))
    assert [p.request_id for p in made] == [p.request_id for p in other]
    assert sum(p.cached_tokens for p in other) > sum(p.cached_tokens for p in made)


def test_a_request_nobody_could_take_is_replayed_too() -> None:
    lines: list[dict[str, Any]] = []
    scheduler = Journal(lines.append).start(make_policy("preble"), rng=random.Random(0))
    with pytest.raises(Exception, match="no worker"):
        scheduler.place(route("r0"), now=0.0)
    scheduler.observe(WorkerJoined(worker_spec("a")), now=1.0)
    scheduler.place(route("r1"), now=1.0)
    assert [p.request_id for p in replay(lines)] == ["r1"]
