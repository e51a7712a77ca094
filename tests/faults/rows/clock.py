"""Wall clocks that jump: an hour forward in some processes, an hour back in others, and home."""

import asyncio
import time
import urllib.request
from email.utils import parsedate_to_datetime

from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 40
HOUR = 3600
STEPS = (
    {"router": HOUR},
    {"router": -HOUR},
    {"router": 0, "w0": HOUR, "w1": -HOUR},
    {"router": HOUR, "w0": -HOUR, "w1": HOUR, "w2": -HOUR, "w3": -HOUR},
    {"router": 0, "w0": 0, "w1": 0, "w2": 0, "w3": 0},
)


async def measure(trial: Trial) -> Outcome:
    """Streams with deadlines go on, and nobody is taken for silent."""
    with trial.cluster(shifted_clocks=True) as cluster:
        load = Load(cluster.url)
        stalls, unready, shifts = [], 0, []
        questions = Questions(seed=15_000, timeout_seconds=20.0)
        async with load.going_on(questions, concurrency=CONCURRENCY):
            await asyncio.sleep(3.0)
            for step in STEPS:
                trial.say(f"clocks off by {step}")
                began_at = time.perf_counter()
                running = [answer for answer in load.in_flight if answer.question.stream]
                for name, seconds in step.items():
                    cluster.shift_clock(name, seconds)
                for _ in range(trial.pick(10, 50)):
                    await asyncio.sleep(0.1)
                    seen = (await asyncio.to_thread(cluster.seen)).values()
                    unready += sum(worker.state != "ready" for worker in seen)
                stalls += [answer.stall_after(began_at) for answer in running]
                shifts.append(await asyncio.to_thread(_shift_of, cluster) - step["router"])
        load.close()
    failed, wrong, stall = len(load.failed), len(load.wrong), max(stalls)
    if trial.is_peer:  # It keeps the text of a date until a later second.
        del shifts[1:]
    assert max(map(abs, shifts)) < HOUR / 60, f"the router's clock did not follow: {shifts}"
    return Outcome(
        not (failed or wrong or unready) and stall <= 2.0,
        f"{failed} of {len(load.answers)} failed, {wrong} with wrong tokens; workers were not "
        f"ready {unready} times; streams stood still for {stall:.2f} s at most",
        failures(load),
    )


def _shift_of(cluster: FaultyCluster) -> float:
    """Seconds by which the router's clock is ahead of ours, as its answers say."""
    with urllib.request.urlopen(cluster.url + "/health", timeout=10) as answer:
        return parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()


ROW = Row(
    name="clock",
    fault="wall clocks of router and workers jump by ±1 h",
    to_reach="0 failed by it; recovery ≤ 2 s",
    measure=measure,
)
