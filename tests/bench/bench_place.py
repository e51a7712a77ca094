"""A whole `place` (match, candidates, policy, booking) in a large cluster, per number of workers.

Run it as `python tests/bench/bench_place.py`. Prompts are 8,192 tokens long, 512 pages. The tree
holds shared system prompts, documents under them and one tail per past request; each prefix is
held by several workers, the top ones by all.
"""

import random
import statistics
import time

from preble.cost import CostModel
from preble.events import CacheSnapshot
from preble.page_keys import KEY_BYTES
from preble.types import WorkerSpec
from preble_router.policies import make_policy
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import RequestFinished, RouteRequest, SnapshotReceived, WorkerJoined

PROMPT_PAGES = 512
PAGE_TOKENS = 16
TARGET_US = {8: 60.0, 64: 150.0, 512: 600.0}
COST = CostModel.first_principles(
    name="8B on one GPU",
    parameters=8e9,
    layers=32,
    hidden=4096,
    kv_bytes_per_token=131072.0,
    flops_per_second=400e12,
    bytes_per_second=2.4e12,
    weight_bytes=16e9,
    fixed=0.002,
)


def spec(index: int) -> WorkerSpec:
    return WorkerSpec(
        worker_id=f"worker-{index}",
        epoch=1,
        model="bench",
        page_tokens=PAGE_TOKENS,
        capacity_tokens=400_000,
        max_batch_tokens=2048,
        max_sequences=256,
        context_tokens=131072,
        vocab_size=128256,
        cost=COST,
    )


class Cluster:
    """A scheduler in front of `num_workers` workers that hold `num_pages` pages in all."""

    def __init__(self, num_workers: int, num_pages: int, policy: str = "preble") -> None:
        self.rng = random.Random(num_workers)
        self.scheduler = GlobalScheduler(make_policy(policy), rng=random.Random(0))
        self.documents = self._documents(num_pages // 2000)
        self.num_placed = 0
        self.now = 1.0
        held: list[list[bytes]] = [[] for _ in range(num_workers)]
        for index, document in enumerate(self.documents):
            for worker in self._some(num_workers, 1 + index % 4):
                held[worker].append(document)
        pages = len(self.documents) * 192
        while pages < num_pages:
            path = self.prompt()
            held[self.rng.randrange(num_workers)].append(path)
            pages += 256
        for index, paths in enumerate(held):
            self.scheduler.observe(WorkerJoined(spec(index)), now=0.0)
            event = SnapshotReceived(f"worker-{index}", CacheSnapshot(1, 0, tuple(paths)))
            self.scheduler.observe(event, now=0.0)

    def prompt(self) -> bytes:
        """Three parts: a system prompt, a document, and 256 pages of its own."""
        tail = self.rng.randbytes(256 * KEY_BYTES)
        return self.rng.choice(self.documents) + tail

    def place(self, count: int) -> list[float]:
        """Microseconds of `count` placements; a quarter of them are still live in the end."""
        took = []
        for _ in range(count):
            self.num_placed += 1
            self.now += 0.002
            request = RouteRequest(
                request_id=f"request-{self.num_placed}",
                page_keys=self.prompt(),
                num_tokens=PROMPT_PAGES * PAGE_TOKENS,
                max_tokens=256,
            )
            started = time.perf_counter()
            self.scheduler.place(request, now=self.now)
            took.append((time.perf_counter() - started) * 1e6)
            if self.num_placed % 4:
                self.scheduler.observe(RequestFinished(request.request_id, 1, 100), now=self.now)
        return took

    def _documents(self, count: int) -> list[bytes]:
        """`count` documents of 192 pages under ten system prompts of 64."""
        systems = [self.rng.randbytes(64 * KEY_BYTES) for _ in range(10)]
        return [systems[i % 10] + self.rng.randbytes(192 * KEY_BYTES) for i in range(count)]

    def _some(self, num_workers: int, count: int) -> list[int]:
        return self.rng.sample(range(num_workers), min(count, num_workers))


def quietest_median(took: list[float], block: int = 200) -> float:
    """The least of the medians of consecutive blocks: what the code takes, not its neighbours."""
    return min(statistics.median(took[i : i + block]) for i in range(0, len(took), block))


def main() -> None:
    heads = "".join(f"{head:>10}" for head in ("quietest", "median", "p99", "target"))
    print(f"{'place, prompt of 8,192 tokens':<36}{heads}")
    for num_workers, target in TARGET_US.items():
        for num_pages in (100_000, 1_000_000):
            cluster = Cluster(num_workers, num_pages)
            cluster.place(300)
            size = cluster.scheduler.tree_summary().num_pages
            took = cluster.place(2000)
            ordered = sorted(took)
            figures = (
                quietest_median(took),
                statistics.median(took),
                ordered[len(took) * 99 // 100],
            )
            columns = "".join(f"{figure:>7.0f} µs" for figure in (*figures, target))
            print(f"{f'{num_workers} workers, {size:,} pages':<36}{columns}")


if __name__ == "__main__":
    main()
