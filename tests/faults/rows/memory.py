"""A worker that leaks memory until its system gives it no more."""

import asyncio
import time

from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 40
MOST_BYTES = 16 << 20
END_SECONDS = 10.0
RETURN_SECONDS = 30.0


async def measure(trial: Trial) -> Outcome:
    """It must end, so that whoever minds it starts it again; its requests go on elsewhere."""
    with trial.cluster() as cluster:
        load = Load(cluster.url)
        stalls, starts = [], []
        async with load.going_on(Questions(seed=16_000), concurrency=CONCURRENCY):
            await asyncio.sleep(3.0)
            for _ in range(trial.pick(1, 5)):
                name = await asyncio.to_thread(cluster.busiest)
                trial.say(f"{name} leaks")
                began_at = time.perf_counter()
                victims = [answer for answer in load.answers if answer.ran_on(name, at=began_at)]
                cluster.leak(name, most=MOST_BYTES)
                await cluster.until(lambda name=name: name in cluster.lost(), seconds=END_SECONDS)
                await asyncio.sleep(1.0)
                stalls += [victim.stall_after(began_at) for victim in victims]
                starts.append(await _start_again(cluster, name))
        load.close()
    failed, wrong, stall = len(load.failed), len(load.wrong), max(stalls, default=0.0)
    return Outcome(
        not (failed or wrong) and stall <= 2.0,
        f"{failed} of {len(load.answers)} failed, {wrong} with wrong tokens; it ended by itself "
        f"{len(starts)} times, and {len(stalls)} streams of it stood still for {stall:.2f} s at "
        f"most; used again {max(starts):.1f} s after it was started again",
        failures(load),
    )


async def _start_again(cluster: FaultyCluster, name: str) -> float:
    """What its supervisor would do; the seconds until it has requests."""
    cluster.stop_leak(name)
    began_at = time.perf_counter()
    cluster.start_worker(name)

    def is_used() -> bool:
        seen = cluster.seen().get(name)
        return seen is not None and seen.state == "ready" and seen.placed_total > 0

    await cluster.until(is_used, seconds=RETURN_SECONDS)
    return time.perf_counter() - began_at


ROW = Row(
    name="memory",
    fault="the busiest worker leaks until it gets no more memory",
    to_reach="0 failed by it; recovery ≤ 2 s",
    measure=measure,
    no_peer="its engines' fronts live in the process that leaks",
)
