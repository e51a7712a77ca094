"""The busiest worker is killed every few seconds, and at times the next one right after it."""

import asyncio

from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 48
PERIOD_SECONDS = 5.0
AFTER_SECONDS = 1.0
"""From one kill to one that hits what just went on elsewhere."""


async def measure(trial: Trial) -> Outcome:
    """Five minutes, or less."""
    rounds = trial.rounds or trial.pick(4, 12 if trial.is_peer else 60)
    num_kills = 0
    with trial.cluster() as cluster:
        load = Load(cluster.url)

        async def kill() -> None:
            name = await asyncio.to_thread(cluster.busiest)
            cluster.kill(name)
            cluster.start_worker(name)

        async with load.going_on(Questions(seed=3000, max_tokens=100), concurrency=CONCURRENCY):
            for number in range(rounds):
                trial.say(f"kill {number + 1} of {rounds}")
                await asyncio.sleep(PERIOD_SECONDS - AFTER_SECONDS)
                await kill()
                num_kills += 1
                await asyncio.sleep(AFTER_SECONDS)
                if number % 3 == 1:
                    await kill()
                    num_kills += 1
        load.close()
    failed, wrong = len(load.failed), len(load.wrong)
    return Outcome(
        failed == 0 == wrong,
        f"{failed} of {len(load.answers)} failed, {wrong} wrong in {num_kills} kills in "
        f"{rounds * PERIOD_SECONDS / 60:.1f} min",
        failures(load),
    )


ROW = Row(
    name="kill-often",
    fault="a kill every 5 s for 5 minutes, also during continuations",
    to_reach="0 failed",
    measure=measure,
)
