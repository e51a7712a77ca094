"""What tests of the peers' policies share: requests put on one worker, and scenes of traffic."""

import random
from collections import Counter

from routing_helpers import Arrival, Job, PretendCluster, pages, poisson, route

from preble.events import CacheEvents, Stored
from preble.types import LoadReport
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    Placement,
    Progress,
    RequestFinished,
    StepReport,
)

IDLE = LoadReport(free_pages=10_000)


def stored(scheduler: GlobalScheduler, worker_id: str, path: bytes, *, seq: int = 1) -> None:
    """The worker says that it holds `path`."""
    batch = CacheEvents(1, seq, (Stored(path),))
    scheduler.observe(CacheChanged(worker_id, batch), now=0.0)


def put(
    scheduler: GlobalScheduler, worker_id: str, path: bytes, *, count: int = 1, now: float = 0.0
) -> list[str]:
    """Place `count` requests for `path` on `worker_id`, whatever the policy wants."""
    others = {view.worker_id for view in scheduler.workers()} - {worker_id}
    names = []
    for _ in range(count):
        num_placed = sum(view.placed_total for view in scheduler.workers())
        names.append(f"put-{num_placed}-{worker_id}-{now}")
        placed = scheduler.place(route(names[-1], path, excluded=others), now=now)
        assert placed.worker_id == worker_id
    return names


def end(scheduler: GlobalScheduler, names: list[str], *, now: float = 0.0) -> None:
    for name in names:
        scheduler.observe(RequestFinished(name, 1, 5), now=now)


def answer(
    scheduler: GlobalScheduler, worker_id: str, names: list[str], *, now: float = 0.0
) -> None:
    """The first tokens of requests on `worker_id` have come."""
    progress = tuple(Progress(name, 1, 1, 0) for name in names)
    report = StepReport(worker_id=worker_id, load=IDLE, progress=progress)
    scheduler.observe(report, now=now)


def chosen(scheduler: GlobalScheduler, path: bytes, *, now: float = 0.0) -> Placement:
    """What a dry run answers."""
    return scheduler.explain(route("probe", path), now=now).placement


def terms(scheduler: GlobalScheduler, path: bytes, name: str, *, now: float = 0.0) -> list[float]:
    """One term of every worker, in the order of their slots."""
    candidates = scheduler.explain(route("probe", path), now=now).candidates
    return [candidate.terms[name] for candidate in candidates]


def spread(
    scheduler: GlobalScheduler, path: bytes, count: int, *, now: float = 0.0
) -> Counter[str]:
    """Where `count` requests for `path` go that are placed and ended one at a time."""
    counts: Counter[str] = Counter()
    for index in range(count):
        name = f"spread-{now}-{index}"
        counts[scheduler.place(route(name, path), now=now).worker_id] += 1
        scheduler.observe(RequestFinished(name, 1, 5), now=now)
    return counts


# Scenes


def hot_prefix(cluster: PretendCluster, *, seed: int = 1) -> dict[str, float]:
    """Shares of the workers of requests that all begin with one long prefix, some 32 in flight."""
    rng = random.Random(seed)
    hot = pages(rng, 64)
    warm_up = [Arrival(0.0, hot + pages(rng, 8), 20)]
    burst = [Arrival(at, hot + pages(rng, 8), 100) for at in poisson(rng, 30.0, 150, start=2.0)]
    return cluster.shares(cluster.run(warm_up + burst)[1:])


def families(cluster: PretendCluster, rate: float, *, seed: int = 3) -> list[Job]:
    """Requests of eight families, 91 % of the prompt shared within each."""
    rng = random.Random(seed)
    prefixes = [pages(rng, 182) for _ in range(8)]
    arrivals = []
    for at in poisson(rng, rate, 240):
        family = rng.randrange(8)
        arrivals.append(Arrival(at, prefixes[family] + pages(rng, 18), 60, family))
    return cluster.run(arrivals)
