"""A pretend cluster for routing tests: workers that count tokens and seconds, in virtual time.

Each worker serves first come first served, prefills in chunks beside its decodes, keeps an LRU
cache of pages and tells of it as a real one does. Nothing here is shared with the real worker.
"""

import random
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pretend_cache import Page, PretendCache

from preble.cost import CostModel
from preble.events import CacheEvents, CacheSnapshot
from preble.page_keys import KEY_BYTES
from preble.types import LoadReport, WorkerSpec
from preble_router.policies import RoutingPolicy, make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import (
    CacheChanged,
    Progress,
    RequestFinished,
    RouteRequest,
    SnapshotReceived,
    StepReport,
    WorkerJoined,
)

PAGE_TOKENS = 16
KEY_SUM_MASK = (1 << 64) - 1
COST = CostModel(
    name="pretend",
    fixed=0.002,
    per_prefill_token=5e-5,
    per_attention=2e-9,
    per_decode=1e-4,
    per_context_token=5e-8,
    weight_read=0.008,
    roofline=True,
)


def worker_spec(
    worker_id: str, *, epoch: int = 1, capacity_tokens: int = 200_000, cost: CostModel = COST
) -> WorkerSpec:
    return WorkerSpec(
        worker_id=worker_id,
        epoch=epoch,
        model="pretend",
        page_tokens=PAGE_TOKENS,
        capacity_tokens=capacity_tokens,
        max_batch_tokens=1024,
        max_sequences=64,
        context_tokens=32_768,
        vocab_size=1000,
        cost=cost,
    )


def route(
    request_id: str,
    page_keys: bytes = b"",
    *,
    attempt: int = 1,
    max_tokens: int = 64,
    extra_tokens: int = 5,
    excluded: Iterable[str] = (),
    namespace: str = "",
) -> RouteRequest:
    """A request for the pages named, and `extra_tokens` that fill no page."""
    return RouteRequest(
        request_id=request_id,
        page_keys=page_keys,
        num_tokens=len(page_keys) // KEY_BYTES * PAGE_TOKENS + extra_tokens,
        max_tokens=max_tokens,
        attempt=attempt,
        excluded=frozenset(excluded),
        namespace=namespace,
    )


def synced_scheduler(
    policy: str | RoutingPolicy, worker_ids: Iterable[str], *, seed: int = 0, **options: float
) -> GlobalScheduler:
    """A scheduler with empty workers whose caches are known."""
    chosen = make_policy(policy) if isinstance(policy, str) else policy
    scheduler = GlobalScheduler(chosen, rng=random.Random(seed), **options)  # type: ignore[arg-type]
    for worker_id in worker_ids:
        scheduler.observe(WorkerJoined(worker_spec(worker_id)), now=0.0)
        scheduler.observe(SnapshotReceived(worker_id, CacheSnapshot(1, 0, ())), now=0.0)
    return scheduler


@dataclass(slots=True, eq=False)
class Job:
    request: RouteRequest
    output_tokens: int
    arrived_at: float
    worker_id: str
    predicted_cached_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    generated: int = 0
    first_token_at: float = 0.0
    finished_at: float = 0.0
    pinned: list[Page] = field(default_factory=list)


class PretendWorker:
    def __init__(self, spec: WorkerSpec, *, speed: float = 1.0) -> None:
        self.spec = spec
        self.speed = speed
        self.cache = PretendCache(spec.capacity_tokens // PAGE_TOKENS)
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.prompt: Job | None = None
        self.busy_until: float | None = None
        self.busy_seconds = 0.0
        self.seq = 0
        self._chunk = 0
        self._predicted = 0.0

    def start(self, now: float) -> float | None:
        """Begin a step; returns when it ends, None without work."""
        if self.prompt is None and self.waiting and len(self.running) < self.spec.max_sequences:
            self._admit(self.waiting.popleft())
        if self.prompt is None and not self.running:
            self.busy_until = None
            return None
        decodes = len(self.running)
        attention = 0.0
        self._chunk = 0
        if self.prompt is not None:
            left = self.prompt.request.num_tokens - self.prompt.computed_tokens
            self._chunk = min(left, self.spec.max_batch_tokens - decodes)
            attention = self._chunk * (self.prompt.computed_tokens + self._chunk / 2)
        self._predicted = self.spec.cost.step_seconds(
            prefill_tokens=self._chunk,
            attention=attention,
            decodes=decodes,
            context_tokens=self._context(),
        )
        seconds = self._predicted * self.speed
        self.busy_seconds += seconds
        self.busy_until = now + seconds
        return self.busy_until

    def finish(self, now: float) -> tuple[CacheEvents | None, StepReport, list[Job]]:
        """End the step: what changed, and who ended."""
        progress = [
            Progress(job.request.request_id, job.request.attempt, 1) for job in self.running
        ]
        for job in self.running:
            job.generated += 1
        if self.prompt is not None:
            progress += self._computed(self.prompt, now)
        done = [job for job in self.running if job.generated >= job.output_tokens]
        self.running = [job for job in self.running if job.generated < job.output_tokens]
        for job in done:
            job.finished_at = now
            for page in job.pinned:
                page.num_users -= 1
        report = StepReport(
            worker_id=self.spec.worker_id,
            load=self.load(),
            step_seconds=self._predicted * self.speed,
            predicted_step_seconds=self._predicted,
            progress=tuple(progress),
        )
        return self.batch(), report, done

    def batch(self) -> CacheEvents | None:
        if not self.cache.events:
            return None
        self.seq += 1
        batch = CacheEvents(self.spec.epoch, self.seq, tuple(self.cache.events))
        self.cache.events.clear()
        return batch

    def load(self) -> LoadReport:
        waiting = sum(job.request.num_tokens for job in self.waiting)
        if self.prompt is not None:
            waiting += self.prompt.request.num_tokens - self.prompt.computed_tokens
        cache = self.cache
        return LoadReport(
            num_waiting=len(self.waiting),
            num_running=len(self.running) + (self.prompt is not None),
            waiting_prefill_tokens=waiting,
            decode_context_tokens=self._context(),
            free_pages=cache.num_pages_max - cache.num_pages,
            cached_pages=cache.num_pages,
            tree_pages=cache.num_pages,
            tree_key_sum=cache.key_sum & KEY_SUM_MASK,
        )

    def _context(self) -> int:
        return sum(job.request.num_tokens + job.generated for job in self.running)

    def _admit(self, job: Job) -> None:
        pages = self.cache.match(job.request.page_keys)
        most = (job.request.num_tokens - 1) // PAGE_TOKENS
        pages = pages[:most]
        for page in pages:
            page.num_users += 1
        job.pinned = pages
        job.cached_tokens = job.computed_tokens = len(pages) * PAGE_TOKENS
        self.prompt = job

    def _computed(self, job: Job, now: float) -> list[Progress]:
        job.computed_tokens += self._chunk
        pages = self.cache.store(
            job.request.page_keys[: job.computed_tokens // PAGE_TOKENS * KEY_BYTES]
        )
        for page in pages[len(job.pinned) :]:
            page.num_users += 1
            job.pinned.append(page)
        if job.computed_tokens < job.request.num_tokens:
            return []
        self.prompt = None
        job.first_token_at = now
        job.generated = 1
        self.running.append(job)
        return [Progress(job.request.request_id, job.request.attempt, 1, job.cached_tokens)]


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    page_keys: bytes
    output_tokens: int
    family: int = 0
    extra_tokens: int = 5


class PretendCluster:
    """Runs arrivals through a scheduler and pretend workers, and keeps every finished job."""

    def __init__(
        self,
        policy: str | RoutingPolicy,
        num_workers: int,
        *,
        seed: int = 0,
        capacity_tokens: int = 200_000,
        speeds: tuple[float, ...] = (),
        max_tokens: int | None = None,
    ) -> None:
        ids = [f"w{i}" for i in range(num_workers)]
        chosen = make_policy(policy) if isinstance(policy, str) else policy
        self.scheduler = GlobalScheduler(chosen, rng=random.Random(seed))
        self.workers: dict[str, PretendWorker] = {}
        self.jobs: list[Job] = []
        self.families: dict[str, int] = {}
        self.now = 0.0
        self.num_ticks = 0
        self.max_tokens = max_tokens
        for index, worker_id in enumerate(ids):
            spec = worker_spec(worker_id, capacity_tokens=capacity_tokens)
            speed = speeds[index] if speeds else 1.0
            self.workers[worker_id] = PretendWorker(spec, speed=speed)
            self.scheduler.observe(WorkerJoined(spec), now=0.0)
            self.scheduler.observe(SnapshotReceived(worker_id, CacheSnapshot(1, 0, ())), now=0.0)

    def run(self, arrivals: Iterable[Arrival], *, drain: bool = True) -> list[Job]:
        """Serve `arrivals`, in order of time; returns the jobs among them, in that order."""
        first = len(self.jobs)
        for arrival in arrivals:
            self._advance(arrival.at)
            self._arrive(arrival)
        if drain:
            self._advance(float("inf"))
        return self.jobs[first:]

    def _arrive(self, arrival: Arrival) -> None:
        request = route(
            f"r{len(self.jobs)}",
            arrival.page_keys,
            max_tokens=self.max_tokens or arrival.output_tokens,
            extra_tokens=arrival.extra_tokens,
        )
        placement = self.scheduler.place(request, now=self.now)
        job = Job(
            request,
            arrival.output_tokens,
            self.now,
            placement.worker_id,
            placement.cached_tokens,
        )
        self.jobs.append(job)
        self.families[request.request_id] = arrival.family
        worker = self.workers[placement.worker_id]
        worker.waiting.append(job)
        if worker.busy_until is None:
            worker.start(self.now)

    def _advance(self, until: float) -> None:
        while True:
            busy = [w for w in self.workers.values() if w.busy_until is not None]
            worker = min(busy, key=lambda w: w.busy_until or 0.0, default=None)
            ends_at = worker.busy_until if worker is not None else None
            wakeup = self.scheduler.next_wakeup()
            if wakeup is not None and wakeup <= min(until, ends_at or until) and wakeup < 1e9:
                if until == float("inf") and ends_at is None:
                    return
                self.now = max(self.now, wakeup)
                actions = self.scheduler.tick(now=self.now)
                self.num_ticks += 1
                assert not actions, "the feed lost sync"
                continue
            if worker is None or ends_at is None or ends_at > until:
                break
            self.now = ends_at
            self._end_step(worker)
        if until != float("inf"):
            self.now = until

    def _end_step(self, worker: PretendWorker) -> None:
        batch, report, done = worker.finish(self.now)
        if batch is not None:
            self.scheduler.observe(CacheChanged(worker.spec.worker_id, batch), now=self.now)
        self.scheduler.observe(report, now=self.now)
        for job in done:
            self.scheduler.observe(
                RequestFinished(job.request.request_id, 1, job.generated), now=self.now
            )
        worker.start(self.now)

    # What came of it

    def shares(self, jobs: Iterable[Job]) -> dict[str, float]:
        """Share of `jobs` per worker."""
        counts = Counter(job.worker_id for job in jobs)
        total = sum(counts.values())
        return {worker_id: counts[worker_id] / total for worker_id in self.workers}

    def meeting_share(self, jobs: Iterable[Job]) -> float:
        """Share of `jobs` that went to the worker with most of their family."""
        by_family: dict[int, Counter[str]] = {}
        for job in jobs:
            counts = by_family.setdefault(self.families[job.request.request_id], Counter())
            counts[job.worker_id] += 1
        total = sum(sum(c.values()) for c in by_family.values())
        return sum(max(c.values()) for c in by_family.values()) / total


def cached_share(jobs: list[Job]) -> float:
    return sum(j.cached_tokens for j in jobs) / sum(j.request.num_tokens for j in jobs)


def quantile(values: Iterable[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


def ttft(jobs: Iterable[Job]) -> list[float]:
    return [job.first_token_at - job.arrived_at for job in jobs]


def latency(jobs: Iterable[Job]) -> list[float]:
    return [job.finished_at - job.arrived_at for job in jobs]


def pages(rng: random.Random, count: int) -> bytes:
    """`count` page keys nobody else has."""
    return rng.randbytes(count * KEY_BYTES)


def poisson(rng: random.Random, rate: float, count: int, *, start: float = 0.0) -> list[float]:
    times, at = [], start
    for _ in range(count):
        at += rng.expovariate(rate)
        times.append(at)
    return times
