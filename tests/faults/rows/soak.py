"""A long time under load, with a kill each minute: what grows?"""

import asyncio
import math
import time
from pathlib import Path

import numpy as np
from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 48
KILL_SECONDS = 60.0
SAMPLE_SECONDS = 2.0
WARM_UP = 0.3
"""Of the time, before which growth is filling caches."""


async def measure(trial: Trial) -> Outcome:
    """Resident memory and descriptors of the router, which alone lives through it all."""
    minutes = trial.pick(0.5, 3.0) if trial.is_peer else trial.soak_minutes or trial.pick(0.5, 3.0)
    period = min(KILL_SECONDS, 15.0 * minutes)
    samples: list[tuple[float, float, float]] = []
    with trial.cluster(options=("--kv-cache-tokens", "40000")) as cluster:
        load = Load(cluster.url)
        async with load.going_on(Questions(seed=12_000), concurrency=CONCURRENCY):
            start = killed_at = time.perf_counter()
            while (now := time.perf_counter()) < start + 60.0 * minutes:
                trial.say(f"{(now - start) / 60:.1f} of {minutes:g} min")
                if now > killed_at + period:
                    killed_at = now
                    name = await asyncio.to_thread(cluster.busiest)
                    cluster.kill(name)
                    cluster.start_worker(name)
                samples.append((now - start, *_resources(cluster)))
                _forget(load)
                await asyncio.sleep(SAMPLE_SECONDS)
        load.close()
    times, memory, descriptors = np.array(samples[int(WARM_UP * len(samples)) :]).T
    slope = float(np.polyfit(times, memory, 1)[0]) * 600.0
    more = float(np.polyfit(times, descriptors, 1)[0]) * 600.0
    return Outcome(
        slope <= 1.0 and abs(more) <= 10.0 and not load.failed,
        f"in {minutes:g} min: memory {slope:+.1f} MiB and descriptors {more:+.0f} in 10 min; "
        f"{len(load.failed)} failed",
        failures(load),
    )


def _forget(load: Load) -> None:
    """What ended well needs no memory of ours."""
    load.answers = [a for a in load.answers if a.ended_at == math.inf or a.failed or a.wrong]


def _resources(cluster: FaultyCluster) -> tuple[float, float]:
    """MiB and descriptors of the router."""
    pages = int(Path(f"/proc/{cluster.processes['router'].pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20, float(cluster.num_descriptors("router"))


ROW = Row(
    name="soak",
    fault="soak with a kill each minute (30 minutes: `--soak-minutes 30`)",
    to_reach="memory slope ≤ 1 MiB/10 min, descriptors flat, 0 failed",
    measure=measure,
)
