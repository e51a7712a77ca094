"""All workers are gone at once; after a while one is back."""

import asyncio
import time

from faults.clusters import FaultyCluster
from faults.load import Answer, Load, Questions
from faults.trial import Outcome, Row, Trial

CONCURRENCY = 48
GONE_SECONDS = 8.0
BACK_SECONDS = 60.0


async def measure(trial: Trial) -> Outcome:
    """What clients are told while nobody is there, and when it is good again."""
    questions = Questions(seed=5000, max_tokens=200, stream=True)
    with trial.cluster() as cluster:
        running, refused = Load(cluster.url), Load(cluster.url)
        streams = asyncio.create_task(
            running.closed_loop(questions.take(CONCURRENCY), concurrency=CONCURRENCY)
        )
        await asyncio.sleep(1.5)
        trial.say("all workers are killed")
        for name in cluster.names:
            cluster.kill(name)
        gone_at = time.perf_counter()
        while time.perf_counter() < gone_at + GONE_SECONDS:
            await asyncio.sleep(0.25)
            await refused.ask(questions.make())
        await streams
        trial.say("one is back")
        cluster.start_worker(cluster.names[0])
        back = await _until_good(cluster, refused, questions)
        running.close()
        refused.close()
    told = [a for a in refused.answers if a.failed and a.sent_at < gone_at + GONE_SECONDS]
    slowest = max((answer.seconds for answer in told), default=0.0)
    astray = [
        *(a.error for a in told if a.status != 503 or "retry-after" not in a.headers),
        *(a.error or "ended well" for a in running.answers if "error event" not in a.error),
        *("wrong text" for _ in running.wrong),
    ]
    return Outcome(
        not astray and slowest <= 1.0 and back <= 5.0,
        f"{len(told)} refused with 503 and Retry-After, the slowest after {slowest:.2f} s, "
        f"{len(running.answers)} streams ended with an error event, {len(astray)} were told "
        f"otherwise; good again {back:.1f} s after one was started",
        tuple(astray),
    )


async def _until_good(cluster: FaultyCluster, load: Load, questions: Questions) -> float:
    """Seconds until a request is answered rightly, the process's start included."""
    start = time.perf_counter()
    answer: Answer | None = None
    while (answer is None or answer.failed) and time.perf_counter() < start + BACK_SECONDS:
        await asyncio.sleep(0.1)
        answer = await load.ask(questions.make(max_tokens=5))
    return time.perf_counter() - start


ROW = Row(
    name="outage",
    fault="all workers killed at once; one started again after 8 s",
    to_reach="503 with `Retry-After` ≤ 1 s, running streams end with an error event, good again "
    "≤ 5 s after one is back",
    measure=measure,
)
