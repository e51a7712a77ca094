"""One tenant has a backlog of ten times its share; another asks steadily."""

import asyncio
import time

from faults.load import Load, Questions, quantile
from faults.trial import Outcome, Row, Trial, failures

SEQUENCES = 10
RATE = 8.0
"""Of the steady tenant, per second: about a fifth of what the cluster can do."""
SETTLING_SECONDS = 10.0
"""Of the backlog alone: by then its requests no longer begin and end together."""
FAIR = ("d2lpm", "dlpm")
UNFAIR = ("preble", "lpm")
"""Policies of the router and of the workers."""


async def measure(trial: Trial) -> Outcome:
    """B alone and beside A under the fair policy, and both under longest prefix first."""
    seconds = trial.pick(8.0, 30.0)
    alone, _ = await _run(trial, FAIR, seconds, backlog=0)
    fair, fair_rate = await _run(trial, FAIR, seconds, backlog=10 * SEQUENCES * 4)
    unfair, unfair_rate = await _run(trial, UNFAIR, seconds, backlog=10 * SEQUENCES * 4)
    ttft = [quantile([a.first_seconds for a in load.answers], 0.99) for load in (alone, fair)]
    failed = sum(len(load.failed) + len(load.wrong) for load in (alone, fair))
    slower, throughput = ttft[1] / ttft[0], fair_rate / unfair_rate
    beside = quantile([a.first_seconds for a in unfair.answers], 0.99) / ttft[0]
    return Outcome(
        slower <= 1.5 and throughput >= 0.95 and not failed,
        f"B's p99 TTFT {slower:.2f}× alone ({1000 * ttft[0]:.0f} ms), {beside:.2f}× under "
        f"{UNFAIR[1]}; throughput {throughput:.2f} of {UNFAIR[1]}'s ({unfair_rate:.0f} tokens/s)",
        failures(alone, fair),
    )


async def _run(
    trial: Trial, policies: tuple[str, str], seconds: float, *, backlog: int
) -> tuple[Load, float]:
    """B's answers, and how many tokens of output per second both had while B asked."""
    policy, local_policy = policies
    options = ("--max-num-seqs", str(SEQUENCES), "--local-policy", local_policy)
    with trial.cluster(options=options, router_options=("--policy", policy)) as cluster:
        trial.say(f"{local_policy}, A has {backlog} requests in the queue")
        load_a, load_b = Load(cluster.url), Load(cluster.url)
        questions_a = Questions(seed=10_000, tenant="a", stream=False, varied=True)
        questions_b = Questions(seed=10_001, tenant="b", stream=True, varied=True)
        await load_b.closed_loop(questions_b.take(32), concurrency=4)
        del load_b.answers[:]
        async with load_a.going_on(questions_a, concurrency=backlog, leave=True):
            await asyncio.sleep(SETTLING_SECONDS)
            began_at = time.perf_counter()
            await load_b.open_loop(questions_b.take(int(RATE * seconds)), rate=RATE, seed=1)
            rate = _answered(began_at, began_at + seconds, load_a, load_b) / seconds
        load_a.close()
        load_b.close()
        return load_b, rate


def _answered(begin: float, end: float, *loads: Load) -> int:
    """Output tokens; all prompts are alike. What ended after the last of B's was to be sent does
    not count: the longer B waits, the longer that goes on."""
    answers = [answer for load in loads for answer in load.answers if not answer.failed]
    return sum(a.question.max_tokens for a in answers if begin <= a.ended_at < end)


ROW = Row(
    name="tenants",
    fault="tenant A backlogged 10×, B steady",
    to_reach="B's p99 TTFT ≤ 1.5× alone; throughput ≥ 0.95 of unfair longest-prefix",
    measure=measure,
    no_peer="knows no tenants",
)
