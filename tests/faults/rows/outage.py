"""All workers are gone at once; after a while one is back."""

import asyncio
import time

from faults.clusters import FaultyCluster
from faults.load import Answer, Load, Questions
from faults.trial import Outcome, Row, Trial, failures

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
    unavailable = sum(a.status == 503 and "retry-after" in a.headers for a in told)
    informed = sum(answer.error.startswith("error event") for answer in running.failed)
    right = unavailable == len(told) and informed == len(running.answers) and not running.wrong
    return Outcome(
        right and slowest <= 1.0 and back <= 5.0,
        f"{unavailable} of {len(told)} got 503 with Retry-After, the slowest after "
        f"{slowest:.2f} s; {informed} of {len(running.answers)} streams ended with an error event; "
        f"good again {back:.1f} s after one was started",
        failures(running),
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
