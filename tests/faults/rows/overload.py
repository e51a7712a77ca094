"""Five times what the cluster can do, with deadlines, and then a little less than it can."""

import time

from faults.load import Answer, Load, Questions, quantile
from faults.trial import Outcome, Row, Trial

SEQUENCES = 10
"""Per worker, so that five times the capacity is a rate that clients on two cores can send."""
TIMEOUT_SECONDS = 3.0
OVERLOAD = 5.0
AFTER = 0.8
SETTLED_SECONDS = 2.0


async def measure(trial: Trial) -> Outcome:
    """Capacity first, from a closed loop in which nobody waits."""
    seconds = trial.pick(10.0, 25.0)
    with trial.cluster(options=("--max-num-seqs", str(SEQUENCES))) as cluster:
        trial.say("capacity")
        load = Load(cluster.url)
        concurrency = SEQUENCES * len(cluster.names)
        questions = Questions(seed=9000)
        await load.closed_loop(questions.take(2 * concurrency), concurrency=concurrency)
        start, number = time.perf_counter(), trial.pick(8, 16) * concurrency
        await load.closed_loop(questions.take(number), concurrency=concurrency)
        capacity = number / (time.perf_counter() - start)
        load.close()
        trial.say(f"{OVERLOAD:g} x {capacity:.0f} requests per second")
        timed = Questions(seed=9001, timeout_seconds=TIMEOUT_SECONDS)
        over, after = Load(cluster.url), Load(cluster.url)
        rate = OVERLOAD * capacity
        start = time.perf_counter()
        await over.open_loop(timed.take(int(rate * seconds)), rate=rate, seed=1)
        took = min(max(a.sent_at for a in over.answers) - start, seconds)
        trial.say(f"{AFTER:g} x capacity")
        rate = AFTER * capacity
        start = time.perf_counter()
        await after.open_loop(timed.take(int(rate * 10.0)), rate=rate, seed=2)
        over.close()
        after.close()
    good = sum(map(_is_good, over.answers)) / (took or 1.0) / capacity
    refused = [a.seconds for a in over.answers if a.status in (429, 503)]
    settled = [a for a in after.answers if a.sent_at >= start + SETTLED_SECONDS]
    recovered = sum(map(_is_good, settled)) / len(settled)
    rejection = quantile(refused, 0.99)
    return Outcome(
        good >= 0.90 and rejection <= 0.050 and recovered >= 0.95 and not over.wrong,
        f"goodput {good:.2f} of {capacity:.0f}/s; {len(refused)} of {len(over.answers)} refused, "
        f"p99 after {1000 * rejection:.0f} ms; then {recovered:.1%} good",
    )


def _is_good(answer: Answer) -> bool:
    """Complete in time; its client has left by then otherwise."""
    return not (answer.failed or answer.wrong)


ROW = Row(
    name="overload",
    fault="5× overload for 25 s with 3 s deadlines, then 0.8×",
    to_reach="goodput ≥ 0.90 of capacity; rejections p99 ≤ 50 ms; ≥ 95 % good ≤ 2 s after",
    measure=measure,
)
