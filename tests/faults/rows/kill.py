"""`kill -9` of the busiest worker, again and again; each time it comes back."""

import asyncio
import time

from faults.clusters import FaultyCluster
from faults.load import Answer, Load, Question, Questions, quantile
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 48
BEFORE_KILL = 130
"""Requests sent by then; a multiple of the concurrency would hit them between two answers."""


async def measure(trial: Trial) -> Outcome:
    """25 runs of 400 requests, or fewer."""
    runs = trial.rounds or trial.pick(2, 5 if trial.is_peer else 25)
    questions, stalls, moved = Questions(seed=1000), [], 0
    with trial.cluster() as cluster:
        load = Load(cluster.url)
        for run in range(runs):
            trial.say(f"run {run + 1} of {runs}")
            killed_at, victims = await kill_the_busiest(cluster, load, questions.take(400))
            moved += len(victims)
            stalls += [victim.stall_after(killed_at) for victim in victims]
            await asyncio.to_thread(cluster.wait_ready, len(cluster.names))
        load.close()
    stall = quantile(stalls, 0.99)
    failed, wrong = len(load.failed), len(load.wrong)
    return Outcome(
        failed == 0 == wrong and stall <= 0.5,
        f"{failed} of {len(load.answers)} failed, {wrong} wrong; p99 stall {stall:.2f} s of the "
        f"{moved} streams that ran there ({runs} kills)",
        failures(load),
    )


async def kill_the_busiest(
    cluster: FaultyCluster, load: Load, questions: list[Question]
) -> tuple[float, list[Answer]]:
    """While these are asked; the worker is started anew. When that was, and whose streams."""
    num_before = len(load.answers)
    asking = asyncio.create_task(load.closed_loop(questions, concurrency=CONCURRENCY))
    await cluster.until(lambda: len(load.answers) >= num_before + BEFORE_KILL)
    name = await asyncio.to_thread(cluster.busiest)
    killed_at = time.perf_counter()
    cluster.kill(name)
    victims = [answer for answer in load.answers if answer.ran_on(name, at=killed_at)]
    cluster.start_worker(name)
    await asking
    return killed_at, victims


ROW = Row(
    name="kill",
    fault="`kill -9` of the busiest worker, 25 runs × 400 requests, streaming and not, greedy and "
    "seeded",
    to_reach="0 failed, 0 wrong tokens, p99 stall ≤ 0.5 s",
    measure=measure,
)
