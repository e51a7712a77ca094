"""The router is killed and comes back; it must find the caches again."""

import asyncio
import time

from faults.clusters import FaultyCluster
from faults.load import Answer, Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 16
FAMILIES = 20
LONG_STREAMS = 40


async def measure(trial: Trial) -> Outcome:
    """Cached share before and after, time to be ready, and whether orphans end."""
    with trial.cluster() as cluster:
        questions = Questions(
            seed=8000, families=FAMILIES, shared_words=300, own_words=40, max_tokens=4, stream=False
        )
        load = Load(cluster.url)
        await load.closed_loop(questions.take(200), concurrency=CONCURRENCY)
        before = await _cached_share(load, questions)
        orphans = Load(cluster.url)
        streams = Questions(seed=8001, max_tokens=400, stream=True).take(LONG_STREAMS)
        running = asyncio.create_task(orphans.closed_loop(streams, concurrency=LONG_STREAMS))
        await asyncio.sleep(2.0)
        trial.say("the router is killed")
        cluster.kill("router")
        killed_at = time.perf_counter()
        cluster.start_router()
        await running
        await asyncio.to_thread(cluster.wait_ready, len(cluster.names))
        warm = time.perf_counter() - killed_at
        left = _running(cluster)
        after = await _cached_share(load, questions)
        load.close()
        orphans.close()
    failed = len(load.failed) + len(load.wrong)
    share = after / before if before else 0.0
    return Outcome(
        warm <= 3.0 and share >= 0.95 and not (failed or left),
        f"ready {warm:.1f} s after the kill, its start included; {after:.1%} cached, "
        f"{before:.1%} before; {left} of {LONG_STREAMS} orphaned streams still ran",
        failures(load),
    )


async def _cached_share(load: Load, questions: Questions) -> float:
    """Of a hundred prompts."""
    num_before = len(load.answers)
    await load.closed_loop(questions.take(100), concurrency=CONCURRENCY)
    answers: list[Answer] = load.answers[num_before:]
    return sum(answer.cached_share for answer in answers) / len(answers)


def _running(cluster: FaultyCluster) -> int:
    """Requests that workers still have."""
    loads = [worker["load"] or {} for worker in cluster.workers()]
    return sum(load.get("num_running", 0) + load.get("num_waiting", 0) for load in loads)


ROW = Row(
    name="router",
    fault="router `kill -9` and restart, under 40 streams",
    to_reach="warm ≤ 3 s with ≥ 95 % of the hit share; streams of the dead one end",
    measure=measure,
)
