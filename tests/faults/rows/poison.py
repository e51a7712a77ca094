"""A request that kills every worker that computes it, among 400 that do not."""

import asyncio

from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 48
BEFORE_POISON = 130


async def measure(trial: Trial) -> Outcome:
    """Once; its client asks a second time when it was refused."""
    questions = Questions(seed=4000)
    poison = questions.make()
    with trial.cluster() as cluster:
        cluster.poison(poison.prompt_hash)
        load, poisoner = Load(cluster.url), Load(cluster.url)
        asking = asyncio.create_task(load.closed_loop(questions.take(399), concurrency=CONCURRENCY))
        await cluster.until(lambda: len(load.answers) >= BEFORE_POISON, seconds=60)
        trial.say("poisoned")
        told = [(await poisoner.ask(poison)).error for _ in range(2)]
        await asking
        lost = cluster.lost()
        load.close()
        poisoner.close()
    failed, wrong = len(load.failed), len(load.wrong)
    return Outcome(
        failed == 0 == wrong and len(lost) <= 2 and all(told),
        f"{len(lost)} workers lost; {failed} of {len(load.answers)} others failed, {wrong} wrong; "
        f"its client was told {told[0][:80]!r}",
        failures(load),
    )


ROW = Row(
    name="poison",
    fault="a poisoned request among 400, asked twice",
    to_reach="≤ 2 workers lost, 0 others failed",
    measure=measure,
)
