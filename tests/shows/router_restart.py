"""Kill the router with `kill -9`, start another, and see how much of the cache it still finds.

The workers keep running. The new router links to them as they announce themselves, reads their
snapshots, and must send the next hundred requests where their prefixes are.
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster_processes import ClusterProcesses
from oracle_streams import Stream, family_streams

from preble import AsyncClient

FAMILIES = 20
CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """Cached share of the prompts before and after, and the size of the trees."""

    share_before: float
    share_after: float
    pages_before: int
    pages_after: int
    ready_seconds: float
    failed: list[str]

    @property
    def passed(self) -> bool:
        """Nothing failed and at least 95 % of the share is back."""
        return not self.failed and self.share_after >= 0.95 * self.share_before


async def hundred(cluster: ClusterProcesses, seed: int) -> Sequence[Stream]:
    """A hundred requests of the same families, eight at a time; own parts differ by `seed`."""
    streams = family_streams(100, families=FAMILIES, shared=480, own=64, max_tokens=4, seed=seed)
    gate = asyncio.Semaphore(CONCURRENCY)
    async with AsyncClient(cluster.grpc_address) as client:

        async def send(stream: Stream) -> None:
            async with gate:
                await stream.run(client, within_seconds=60)

        await asyncio.gather(*(send(stream) for stream in streams))
    return streams


def cached_share(streams: Sequence[Stream]) -> float:
    """Prompt tokens served from cache over all prompt tokens."""
    usages = [stream.usage for stream in streams if stream.usage is not None]
    return sum(u.cached_tokens for u in usages) / sum(u.prompt_tokens for u in usages)


async def restart_the_router(cluster: ClusterProcesses) -> Outcome:
    """The experiment, on a fresh cluster."""
    await hundred(cluster, seed=1)
    before = await hundred(cluster, seed=2)
    pages_before = sum(worker["held_pages"] for worker in cluster.workers())
    cluster.kill("router")
    cluster.start_router()
    ready = await asyncio.to_thread(cluster.wait_ready, cluster.num_workers)
    pages_after = sum(worker["held_pages"] for worker in cluster.workers())
    after = await hundred(cluster, seed=3)
    return Outcome(
        share_before=cached_share(before),
        share_after=cached_share(after),
        pages_before=pages_before,
        pages_after=pages_after,
        ready_seconds=ready,
        failed=[stream.error for stream in (*before, *after) if stream.error],
    )


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as logs,
        ClusterProcesses(Path(logs), workers=4) as cluster,
    ):
        outcome = asyncio.run(restart_the_router(cluster))
    print(f"cached share of 100 requests before  {outcome.share_before:.1%}")
    print(f"cached share of the next 100 after   {outcome.share_after:.1%}")
    print(f"pages in the router's tree           {outcome.pages_before}, {outcome.pages_after}")
    print(f"new router ready with all workers    {outcome.ready_seconds:.2f} s after its start")
    print(f"failed requests                      {len(outcome.failed)}")
    print("PASSED" if outcome.passed else "FAILED")
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
