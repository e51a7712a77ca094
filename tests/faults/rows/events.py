"""Cache events that go wrong between worker and router; workers that begin anew meanwhile."""

import asyncio
import time
from typing import Any

from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures
from worker_link_helpers import link

CONCURRENCY = 40
FAMILIES = 64
CACHE_TOKENS = "16000"
"""Per worker; less than what is asked about, so that pages are evicted all the time."""
RESTART_SECONDS = 60.0
LOST_SECONDS = 0.5
HEAL_SECONDS = 10.0
QUIET_SECONDS = 3.0


class Repairs:
    """Snapshots and differences that the router took in, over all lives of all workers."""

    def __init__(self, cluster: FaultyCluster) -> None:
        self._cluster = cluster
        self._most: dict[tuple[str, int], tuple[int, int]] = {}

    def look(self) -> list[dict[str, Any]]:
        """Counts what there is by now; the workers as the router sees them."""
        workers = [worker for worker in self._cluster.workers() if worker["spec"]]
        for worker in workers:
            life = worker["worker_id"], worker["spec"]["epoch"]
            self._most[life] = worker["snapshots_total"], worker["differences_total"]
        return workers

    @property
    def totals(self) -> tuple[int, int]:
        """Snapshots beyond the one with which each life begins, and differences."""
        counts = self._most.values()
        return sum(count[0] - 1 for count in counts), sum(count[1] for count in counts)


async def measure(trial: Trial) -> Outcome:
    """Faults under load; then the last events are lost, and nothing follows them."""
    seconds, num_restarts = trial.pick(20.0, 600.0), 0
    with trial.cluster(options=("--kv-cache-tokens", CACHE_TOKENS)) as cluster:
        load, repairs = Load(cluster.url), Repairs(cluster)
        async with load.going_on(
            Questions(seed=17_000, families=FAMILIES), concurrency=CONCURRENCY
        ):
            await asyncio.sleep(2.0)
            cluster.garble(0.01)
            start = restarted_at = time.monotonic()
            while (now := time.monotonic()) < start + seconds:
                trial.say(f"{now - start:.0f} of {seconds:.0f} s")
                if now > restarted_at + min(RESTART_SECONDS, seconds / 2):
                    name, restarted_at = cluster.names[num_restarts % 4], now
                    cluster.kill(name)
                    cluster.start_worker(name)
                    num_restarts += 1
                await asyncio.to_thread(repairs.look)
                await asyncio.sleep(1.0)
            cluster.garble(1.0)
            await asyncio.sleep(LOST_SECONDS)
        cluster.garble(0.0)
        trial.say("healing")
        faults = cluster.garbled()
        healed = await _until_equal(repairs) - faults[-1][1]
        snapshots, differences = repairs.totals
        await asyncio.sleep(QUIET_SECONDS)
        truth = await _true_digests(await asyncio.to_thread(repairs.look))
        late = sum(repairs.totals) - snapshots - differences
        load.close()
    failed = len(load.failed) + len(load.wrong)
    return Outcome(
        healed <= 2.0 and truth and not (failed or late) and snapshots + differences < len(faults),
        f"{'equal' if truth else 'NOT equal'}, {healed:.1f} s after the last of {len(faults)} "
        f"faults and {num_restarts} restarts in {seconds:.0f} s; {differences} differences and "
        f"{snapshots} whole snapshots asked for, {late} of them later; {failed} of "
        f"{len(load.answers)} failed",
        failures(load),
    )


async def _until_equal(repairs: Repairs) -> float:
    """When what the router holds of each worker is first what that worker says it is."""
    end_at = time.monotonic() + HEAL_SECONDS
    while time.monotonic() < end_at:
        workers = await asyncio.to_thread(repairs.look)
        if all(
            worker["state"] == "ready"
            and (worker["held_pages"], worker["held_key_sum"])
            == (worker["load"]["tree_pages"], worker["load"]["tree_key_sum"])
            for worker in workers
        ):
            break
        await asyncio.sleep(0.02)
    return time.monotonic()


async def _true_digests(workers: list[dict[str, Any]]) -> bool:
    """Whether a new link to each worker, to which nothing happens, tells the same of its cache."""
    for worker in workers:
        async with link(worker["address"], "oracle") as oracle:
            assert oracle.held is not None
            if oracle.held.digest() != (worker["held_pages"], worker["held_key_sum"]):
                return False
    return True


ROW = Row(
    name="events",
    fault="cache events lost, twice, out of order, corrupt, late, or cleared, 1 % each for 10 "
    "minutes, a worker restarted each minute, the last events lost",
    to_reach="tree equals the oracle ≤ 2 s after the last; no unbounded resync",
    measure=measure,
    no_peer="reads no cache events of these engines",
)
