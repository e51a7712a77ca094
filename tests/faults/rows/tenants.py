"""One tenant has a backlog of ten times its share; another asks steadily."""

import asyncio

from faults.load import Load, Questions, quantile
from faults.trial import Outcome, Row, Trial, failures

SEQUENCES = 10
RATE = 8.0
"""Of the steady tenant, per second: about a fifth of what the cluster can do."""
FAIR = "dlpm"
UNFAIR = "lpm"


async def measure(trial: Trial) -> Outcome:
    """B alone and beside A under the fair policy, and both under longest prefix first."""
    seconds = trial.pick(8.0, 20.0)
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
        f"{UNFAIR}; throughput {throughput:.2f} of {UNFAIR}'s",
        failures(alone, fair),
    )


async def _run(trial: Trial, policy: str, seconds: float, *, backlog: int) -> tuple[Load, float]:
    """B's answers, and what both were given, in requests per second."""
    options = ("--max-num-seqs", str(SEQUENCES), "--local-policy", policy)
    with trial.cluster(options=options) as cluster:
        trial.say(f"{policy}, A has {backlog} requests in the queue")
        load_a, load_b = Load(cluster.url), Load(cluster.url)
        questions_a = Questions(seed=10_000, tenant="a", stream=False)
        questions_b = Questions(seed=10_001, tenant="b", stream=True)
        async with load_a.going_on(questions_a, concurrency=backlog, leave=True):
            await asyncio.sleep(3.0)
            await load_b.closed_loop(questions_b.take(16), concurrency=4)
            done = _done(load_a)
            del load_b.answers[:]
            await load_b.open_loop(questions_b.take(int(RATE * seconds)), rate=RATE, seed=1)
            rate = (_done(load_a) - done + len(load_b.answers)) / seconds
        load_a.close()
        load_b.close()
        return load_b, rate


def _done(load: Load) -> int:
    return len(load.answers) - len(load.in_flight)


ROW = Row(
    name="tenants",
    fault="tenant A backlogged 10×, B steady",
    to_reach="B's p99 TTFT ≤ 1.5× alone; throughput ≥ 0.95 of unfair longest-prefix",
    measure=measure,
    no_peer="knows no tenants",
)
