"""A long time under load, with a kill each minute: what grows?"""

import asyncio
import math
import time
from pathlib import Path

import numpy as np
from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

RATE = 8.0
"""Requests per second: were it what a closed loop reaches, memory would follow the machine's load,
as the router remembers what came lately."""
KILL_SECONDS = 60.0
SAMPLE_SECONDS = 2.0
WARM_UP = 0.3
"""Of the time, before which growth is filling caches."""


async def measure(trial: Trial) -> Outcome:
    """Memory, descriptors and tasks of the router, which alone lives through it all."""
    minutes = trial.pick(0.5, 3.0) if trial.is_peer else trial.soak_minutes or trial.pick(0.5, 3.0)
    period = min(KILL_SECONDS, 15.0 * minutes)
    num_asked = 0
    samples: list[tuple[float, float, float, float]] = []
    with trial.cluster(options=("--kv-cache-tokens", "40000")) as cluster:
        load = Load(cluster.url)
        async with load.going_on(Questions(seed=12_000, max_tokens=60), rate=RATE):
            start = killed_at = time.perf_counter()
            while (now := time.perf_counter()) < start + 60.0 * minutes:
                trial.say(f"{(now - start) / 60:.1f} of {minutes:g} min")
                if now > killed_at + period:
                    killed_at = now
                    name = await asyncio.to_thread(cluster.busiest)
                    cluster.kill(name)
                    cluster.start_worker(name)
                samples.append((now - start, *await asyncio.to_thread(_resources, cluster)))
                num_asked += _forget(load)
                await asyncio.sleep(SAMPLE_SECONDS)
        load.close()
    num_asked += len(load.answers)
    times, *columns = np.array(samples[int(WARM_UP * len(samples)) :]).T
    memory, *others = (float(np.polyfit(times, column, 1)[0]) * 600.0 for column in columns)
    failed = len(load.failed) + len(load.wrong)
    return Outcome(
        memory <= 1.0 and max(map(abs, others)) <= 10.0 and not failed,
        f"in {minutes:g} min: memory {memory:+.1f} MiB, descriptors {others[0]:+.0f} and tasks "
        f"{others[1]:+.0f} in 10 min; {failed} of {num_asked} failed",
        failures(load),
    )


def _forget(load: Load) -> int:
    """What ended well needs no memory of ours; how many those were."""
    num_before = len(load.answers)
    load.answers = [a for a in load.answers if a.ended_at == math.inf or a.failed or a.wrong]
    return num_before - len(load.answers)


def _resources(cluster: FaultyCluster) -> tuple[float, float, float]:
    """MiB, descriptors and tasks of the router."""
    pages = int(Path(f"/proc/{cluster.processes['router'].pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20, cluster.num_descriptors("router"), cluster.num_tasks()


ROW = Row(
    name="soak",
    fault="soak with a kill each minute (30 minutes: `--soak-minutes 30`)",
    to_reach="memory slope ≤ 1 MiB/10 min, descriptors and tasks flat, 0 failed",
    measure=measure,
)
