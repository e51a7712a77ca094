"""What a local policy costs per step, the engine stubbed, beside first come, first served.

python tests/bench/bench_local_policies.py
"""

import sys
from pathlib import Path
from statistics import fmean
from time import thread_time

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_engine import StubEngine
from local_policy_helpers import Job
from worker_helpers import make_request

from preble_worker.config import SchedulerConfig
from preble_worker.policies import POLICY_NAMES, PolicyOptions
from preble_worker.policies.adaptive import Adaptive, Prospect, Room, Runner
from preble_worker.policies.pace import Pace
from preble_worker.scheduler import LocalScheduler

NUM_STEPS = 64
NUM_RUNNING = 32
CANDIDATES = (50, 400, 1600)
TARGET_MS = 1.0
"""For the mean step at 400 candidates."""


def step_seconds(policy: str, num_candidates: int) -> list[float]:
    """CPU time of steps in which a batch of 32 decodes and the others wait; with every eighth step
    a request ends, another one starts and a new one comes.
    """
    config = SchedulerConfig(
        num_pages=40_000, max_batch_tokens=2048, max_sequences=NUM_RUNNING, policy=policy
    )
    scheduler = LocalScheduler(config, epoch=1)

    def add(number: int) -> None:
        length = 200 + number * 7919 % 400
        prompt = [number % 50_000] * 64
        scheduler.add(make_request(f"r{number}", prompt, length, tenant=str(number % 8)), now=now)

    now = 0.0
    for number in range(num_candidates):
        add(number)
    seconds = []
    for number in range(NUM_STEPS + 8):
        now = 0.02 * number
        if number % 8 == 7:
            scheduler.cancel(f"r{number}", now=now)
            add(num_candidates + number)
        started = thread_time()
        batch = scheduler.schedule(now=now)
        assert batch is not None
        scheduled = thread_time() - started
        tokens = StubEngine().run(batch)
        started = thread_time()
        scheduler.complete(batch, tokens, now=now)
        seconds.append(scheduled + thread_time() - started)
    return seconds[8:]


def plan_seconds(num_candidates: int) -> list[float]:
    """CPU time of plans of `adaptive` for so many that wait, of all ages, and 24 that may pause."""
    policy = Adaptive(PolicyOptions())
    jobs = [Job(arrived_at=-0.005 * number) for number in range(num_candidates)]
    room = Room(
        pages=0,
        count=64,
        num_live=num_candidates,
        page_tokens=16,
        forms=(),
        pace=Pace(512, 0.1),
        tokens=2048,
    )
    runners = [Runner(Job(), 50 + number, 0.03) for number in range(24)]
    seconds = []
    for _ in range(NUM_STEPS):
        started = thread_time()
        prospects = [
            Prospect(
                candidate=job,
                pending_seconds=-job.arrived_at,
                first_seconds=0.05,
                slo_seconds=1.0,
                pages=10 + number % 60,
                can_wait=number % 3 == 0,
                tokens=16 * (10 + number % 60),
            )
            for number, job in enumerate(jobs)
        ]
        policy.plan(prospects, room, pausable=runners)
        seconds.append(thread_time() - started)
    return seconds


def main() -> None:
    print("milliseconds of CPU time per step: mean, worst")
    print(f"{'candidates':<16}" + "".join(f"{count:>16}" for count in CANDIDATES))
    for policy in POLICY_NAMES:
        line, verdict = f"{policy:<16}", ""
        for count in CANDIDATES:
            seconds = step_seconds(policy, count)
            mean = 1e3 * fmean(seconds)
            line += f"{mean:>9.3f}{1e3 * max(seconds):>7.2f}"
            if count == 400:
                verdict = "met" if mean <= TARGET_MS else "MISSED"
        print(f"{line}   target {TARGET_MS:.0f} at 400: {verdict}")
    plans = {count: plan_seconds(count) for count in CANDIDATES}
    line = "".join(f"{1e3 * fmean(s):>9.3f}{1e3 * max(s):>7.2f}" for s in plans.values())
    verdict = "met" if 1e3 * fmean(plans[400]) <= TARGET_MS else "MISSED"
    print(f"{'adaptive, a plan':<16}{line}   target {TARGET_MS:.0f} at 400: {verdict}")


if __name__ == "__main__":
    main()
