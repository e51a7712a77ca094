"""Workers that hang: a whole process stopped, or only its step loop, and both go on later."""

import asyncio
import math
import time
from collections.abc import Callable

from faults.clusters import FaultyCluster
from faults.load import Load, Questions
from faults.trial import Outcome, Row, Trial, failures

CONCURRENCY = 48
RETURN_SECONDS = 20.0
"""How long to wait at most for a worker that hung to be used again."""


async def measure_stopped(trial: Trial) -> Outcome:
    """SIGSTOP, SIGCONT."""
    with trial.cluster() as cluster:
        return await _hang(trial, cluster, cluster.freeze, cluster.thaw)


async def measure_blocked(trial: Trial) -> Outcome:
    """A step that does not end; health checks are still answered."""
    with trial.cluster() as cluster:
        return await _hang(trial, cluster, cluster.block, cluster.unblock)


async def _hang(
    trial: Trial,
    cluster: FaultyCluster,
    begin: Callable[[str], None],
    end: Callable[[str], None],
) -> Outcome:
    load, hang_seconds = Load(cluster.url), trial.pick(6.0, 14.0)
    async with load.going_on(Questions(seed=2000), concurrency=CONCURRENCY):
        await asyncio.sleep(3.0)
        name = await asyncio.to_thread(cluster.busiest)
        before = (await asyncio.to_thread(cluster.seen))[name]
        trial.say(f"{name} hangs for {hang_seconds:.0f} s")
        began_at = time.perf_counter()
        victims = [answer for answer in load.answers if answer.ran_on(name, at=began_at)]
        begin(name)
        noticed = None if trial.is_peer else await _until_not_ready(cluster, name) - began_at
        await asyncio.sleep(began_at + hang_seconds - time.perf_counter())
        before = (await asyncio.to_thread(cluster.seen)).get(name, before)
        ended_at = time.perf_counter()
        end(name)
        back = await _until_used(cluster, name, before.placed_total) - ended_at
        await asyncio.sleep(1.0)
    load.close()
    stall = max((victim.stall_after(began_at) for victim in victims), default=0.0)
    failed, wrong = len(load.failed), len(load.wrong)
    return Outcome(
        failed == 0 == wrong and noticed is not None and noticed <= 2.0 and back <= 5.0,
        ("" if noticed is None else f"noticed after {noticed:.2f} s; ")
        + f"{failed} of {len(load.answers)} failed, {wrong} with wrong tokens; its "
        f"{len(victims)} streams stood still for {stall:.1f} s at most; used again after "
        + (f"{back:.1f} s" if back < RETURN_SECONDS else f"more than {RETURN_SECONDS:.0f} s"),
        failures(load),
    )


async def _until_not_ready(cluster: FaultyCluster, name: str) -> float:
    """When the router knows."""
    end_at = time.perf_counter() + 5.0
    while time.perf_counter() < end_at:
        if (await asyncio.to_thread(cluster.seen))[name].state != "ready":
            return time.perf_counter()
        await asyncio.sleep(0.02)
    return math.inf


async def _until_used(cluster: FaultyCluster, name: str, placed_before: int) -> float:
    """When it is ready and has requests that came after it hung; infinite after a while."""
    end_at = time.perf_counter() + RETURN_SECONDS
    while time.perf_counter() < end_at:
        seen = (await asyncio.to_thread(cluster.seen)).get(name)
        if seen and seen.state == "ready" and seen.placed_total > placed_before:
            return time.perf_counter()
        await asyncio.sleep(0.05)
    return math.inf


STOPPED = Row(
    name="stop",
    fault="SIGSTOP of the busiest worker, SIGCONT after 14 s",
    to_reach="noticed ≤ 2 s, 0 failed, 0 zombie tokens, back in use ≤ 5 s after",
    measure=measure_stopped,
)
BLOCKED = Row(
    name="block",
    fault="a blocked step loop whose sockets answer, for 14 s",
    to_reach="the same",
    measure=measure_blocked,
)
