"""Kill a worker with `kill -9` while many streams run, and see what the clients notice.

Four simulated workers; every token that a client receives is compared with the one it must be.
"""

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cluster_processes import ClusterProcesses
from oracle_streams import Stream, family_streams

from preble import AsyncClient


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen. `wrong` names each stream that did not end with exactly its tokens."""

    in_flight: int
    on_victim: int
    without_token: int
    wrong: list[str]
    moved: int
    held_pages_before: int
    held_pages_after: int
    forgotten_seconds: float

    @property
    def passed(self) -> bool:
        """No stream hung, failed or lost a token, and the dead worker left the tree."""
        return not self.wrong and self.held_pages_after == 0 < self.held_pages_before


async def kill_the_busiest(cluster: ClusterProcesses, num_streams: int = 48) -> Outcome:
    """The experiment, on a fresh cluster of simulated workers."""
    streams = family_streams(num_streams, families=8, shared=512, own=64, max_tokens=160, seed=1)
    async with AsyncClient(cluster.grpc_address) as client:
        tasks = [asyncio.create_task(stream.run(client, within_seconds=60)) for stream in streams]
        await cluster.until(lambda: sum(len(s.tokens) > 4 for s in streams) >= num_streams // 2)
        workers = await asyncio.to_thread(cluster.workers)
        victim = max(workers, key=lambda worker: worker["live_requests"])
        live = [s for s, task in zip(streams, tasks, strict=True) if not task.done()]
        waiting = [s for s in live if not s.tokens]
        cluster.kill(victim["worker_id"])
        killed_at = time.monotonic()

        def held() -> int:
            return sum(
                worker["held_pages"]
                for worker in cluster.workers()
                if worker["worker_id"] == victim["worker_id"]
            )

        await cluster.until(lambda: held() == 0)
        forgotten = time.monotonic() - killed_at
        await asyncio.gather(*tasks)
        state = await client.cluster()
    spec = next(worker.spec for worker in state.workers if worker.spec is not None)
    excluded = cluster.excluded_tokens()
    verdicts = [(s, s.verdict(spec.vocab_size, excluded)) for s in streams]
    return Outcome(
        in_flight=len(live),
        on_victim=victim["live_requests"],
        without_token=len(waiting),
        wrong=[f"stream {streams.index(s)}: {verdict}" for s, verdict in verdicts if verdict],
        moved=_served_elsewhere(live, victim["worker_id"]),
        held_pages_before=victim["held_pages"],
        held_pages_after=held(),
        forgotten_seconds=forgotten,
    )


def _served_elsewhere(streams: list[Stream], victim: str) -> int:
    return sum(stream.worker_id not in (None, victim) for stream in streams)


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as logs,
        ClusterProcesses(Path(logs), workers=4, worker_options=("--max-num-seqs", "8")) as cluster,
    ):
        outcome = asyncio.run(kill_the_busiest(cluster))
    print(f"streams in flight when the worker was killed   {outcome.in_flight}")
    print(f"  of them on that worker                       {outcome.on_victim}")
    print(f"  of all, without a token yet                  {outcome.without_token}")
    print(f"ended on a living worker                       {outcome.moved}")
    print(f"hung, failed, or with a wrong token            {len(outcome.wrong)}")
    print(
        f"pages of the dead worker in the router's tree  "
        f"{outcome.held_pages_before} before, {outcome.held_pages_after} after "
        f"{outcome.forgotten_seconds:.2f} s"
    )
    for line in outcome.wrong:
        print(" ", line)
    print("PASSED" if outcome.passed else "FAILED")
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
