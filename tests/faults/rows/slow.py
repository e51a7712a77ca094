"""One worker computes ten times slower for a while."""

import asyncio

from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 48
FACTOR = 10.0
NOTICE_SECONDS = 10.0
SLOW_SECONDS = 30.0
LAST_SECONDS = 5.0


async def measure(trial: Trial) -> Outcome:
    """Its share of what is placed, over the fair one."""
    with trial.cluster() as cluster:
        load, name = Load(cluster.url), cluster.names[1]
        async with load.going_on(Questions(seed=6000, families=16), concurrency=CONCURRENCY):
            await asyncio.sleep(5.0)
            trial.say(f"{name} is slow")
            cluster.slow(name, FACTOR)
            await asyncio.sleep(NOTICE_SECONDS)
            slow = await _share(cluster, name, trial.pick(5.0, SLOW_SECONDS - NOTICE_SECONDS))
            trial.say(f"{name} is cured")
            cluster.slow(name, 1.0)
            await asyncio.sleep(trial.pick(10.0, SLOW_SECONDS - LAST_SECONDS))
            cured = await _share(cluster, name, LAST_SECONDS)
        load.close()
    failed = len(load.failed) + len(load.wrong)
    return Outcome(
        slow <= 0.25 and cured >= 0.8 and not failed,
        f"{slow:.2f} of its fair share after {NOTICE_SECONDS:.0f} s, {cured:.2f} in the "
        f"last {LAST_SECONDS:.0f} s of {trial.pick(15, 30)} s after the cure; {failed} of "
        f"{len(load.answers)} failed",
        failures(load),
    )


async def _share(cluster: FaultyCluster, name: str, seconds: float) -> float:
    """Of what is placed in the next `seconds`, in fair shares."""
    before = await asyncio.to_thread(cluster.seen)
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(cluster.seen)
    placed = {each: after[each].placed_total - before[each].placed_total for each in cluster.names}
    return len(placed) * placed[name] / max(sum(placed.values()), 1)


ROW = Row(
    name="slow",
    fault="one worker 10× slower for 30 s",
    to_reach="its share ≤ ¼ of fair within 10 s, ≥ 80 % within 30 s of the cure",
    measure=measure,
)
