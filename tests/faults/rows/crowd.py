"""What must not be taken for a fault: a crowd, a long step, a short pause."""

import asyncio
from dataclasses import replace

from faults.clusters import COST
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CROWD = 1280
LONG_WORDS = 64_000 // 2
PAUSE_SECONDS = 0.5
CONTEXT_TOKENS = 80_000


async def measure(trial: Trial) -> Outcome:
    """All three in turn, on workers that compute a whole long prompt in one step of seconds."""
    questions = Questions(seed=7000, max_tokens=8)
    options = ("--max-model-len", str(CONTEXT_TOKENS), "--max-num-batched-tokens")
    with trial.cluster(
        options=(*options, str(CONTEXT_TOKENS)), cost=replace(COST, per_prefill_token=5e-5)
    ) as cluster:
        load = Load(cluster.url)
        trial.say(f"{CROWD} requests at once")
        await load.closed_loop(questions.take(CROWD), concurrency=CROWD)
        slowest = max(answer.seconds for answer in load.answers)
        trial.say("a prompt of 64,000 tokens")
        long = questions.make(words=LONG_WORDS)
        async with load.going_on(questions, concurrency=40):
            await load.ask(long)
            trial.say("pauses of half a second")
            for name in (*cluster.names, "router"):
                cluster.freeze(name)
                await asyncio.sleep(PAUSE_SECONDS)
                cluster.thaw(name)
                await asyncio.sleep(PAUSE_SECONDS)
        load.close()
        log = (cluster.directory / "router.log").read_text()
        ejections = log.count("has gone silent") + log.count("lost worker")
    failed = len(load.failed) + len(load.wrong)
    told = "" if trial.is_peer else f"{ejections} false ejections; "
    return Outcome(
        failed == 0 == ejections,
        f"{told}{failed} of {len(load.answers)} failed; the crowd's slowest took {slowest:.1f} s",
        failures(load),
    )


ROW = Row(
    name="crowd",
    fault="1,280 requests at once; a prefill of 64,000 tokens in one step; pauses of 500 ms of "
    "each worker and the router",
    to_reach="0 false ejections",
    measure=measure,
)
