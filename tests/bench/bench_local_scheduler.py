"""What the worker's scheduler itself costs per step, the engine stubbed.

python tests/bench/bench_local_scheduler.py
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import thread_time

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from worker_helpers import StubEngine, make_request

from preble_worker.config import SchedulerConfig
from preble_worker.outputs import StepOutputs
from preble_worker.scheduler import LocalScheduler

NUM_STEPS = 400
PROMPT_TOKENS = 512
TARGET_US = {32: 150.0, 256: 400.0}


def make_scheduler(num_running: int, *, policy: str = "preble_groups") -> LocalScheduler:
    """A scheduler whose `num_running` requests all decode, their prompts shared to 7/8."""
    config = SchedulerConfig(
        num_pages=64 * num_running + 2048,
        max_batch_tokens=8192,
        max_sequences=num_running + 8,
        context_tokens=8192,
        policy=policy,
        eos_token_ids=(2,),
    )
    scheduler = LocalScheduler(config, epoch=1)
    for index in range(num_running):
        scheduler.add(request(f"running-{index}", index, max_tokens=4096), now=0.0)
    while scheduler.load().decode_context_tokens < PROMPT_TOKENS * num_running:
        step(scheduler, 0.0)
    return scheduler


def request(name: str, index: int, max_tokens: int):  # type: ignore[no-untyped-def]
    shared = list(range(1000, 1000 + PROMPT_TOKENS * 7 // 8))
    own = [index + 10] * (PROMPT_TOKENS // 8)
    return make_request(name, shared + own, max_tokens=max_tokens, seed=index)


def step(scheduler: LocalScheduler, now: float) -> tuple[float, float, StepOutputs]:
    """One step; seconds in `schedule`, seconds in `complete`, and what came out."""
    started = thread_time()
    batch = scheduler.schedule(now=now)
    scheduled = thread_time()
    assert batch is not None
    tokens = StubEngine().run(batch)
    computed = thread_time()
    outputs = scheduler.complete(batch, tokens, now=now)
    return scheduled - started, thread_time() - computed, outputs


def microseconds(seconds: list[float], statistic: Callable[[list[float]], float]) -> float:
    return statistic(seconds) * 1e6


def bench_decode(num_running: int) -> None:
    scheduler = make_scheduler(num_running)
    schedules, completes, objects, reports = [], [], [], []
    for number in range(NUM_STEPS):
        schedule, complete, outputs = step(scheduler, 0.01 * number)
        started = thread_time()
        assert len(outputs.outputs) == num_running
        objects.append(thread_time() - started)
        started = thread_time()
        scheduler.load()
        reports.append(thread_time() - started)
        schedules.append(schedule)
        completes.append(complete)
    totals = [a + b for a, b in zip(schedules, completes, strict=True)]
    whole = [a + b for a, b in zip(totals, objects, strict=True)]
    mean, p99 = microseconds(totals, np.mean), microseconds(totals, lambda s: np.quantile(s, 0.99))
    target = TARGET_US[num_running]
    print(
        f"decode step, batch {num_running:>3}   schedule {microseconds(schedules, median):6.1f}   "
        f"complete {microseconds(completes, median):6.1f}   mean of both {mean:6.1f}   "
        f"p99 {p99:6.1f}   with {num_running} RequestOutputs {microseconds(whole, np.mean):6.1f}   "
        f"target {target:4.0f}   {'met' if microseconds(whole, np.mean) <= target else 'MISSED'}"
    )
    print(f"load report               {microseconds(reports, median):6.1f}")


def bench_start(policy: str, num_waiting: int) -> None:
    """Start requests, eight finishing and eight starting per step, in front of a long queue."""
    scheduler = make_scheduler(24, policy=policy)
    for index in range(num_waiting):
        scheduler.add(request(f"waiting-{index}", 100 + index, max_tokens=1), now=0.0)
    schedules, completes = [], []
    for number in range(num_waiting // 8):
        for index in range(number * 8, number * 8 + 8):
            name = f"more-{index}"
            scheduler.add(request(name, 1000 + index, max_tokens=1), now=0.01 * number)
        schedule, complete, _ = step(scheduler, 0.01 * number)
        schedules.append(schedule)
        completes.append(complete)
    print(
        f"step that starts 8 of {num_waiting} waiting, {policy:<14}"
        f"schedule {microseconds(schedules, median):6.1f}   "
        f"complete {microseconds(completes, median):6.1f}"
    )


def bench_blocked(num_waiting: int) -> None:
    """Decode steps while the first of the queue finds no page."""
    config = SchedulerConfig(
        num_pages=1400, max_batch_tokens=8192, max_sequences=64, context_tokens=8192
    )
    scheduler = LocalScheduler(config, epoch=1)
    for index in range(32):
        prompt = [index + 10] * PROMPT_TOKENS
        scheduler.add(make_request(f"running-{index}", prompt, max_tokens=4096), now=0.0)
    while scheduler.load().num_waiting:
        step(scheduler, 0.0)
    for index in range(num_waiting):
        prompt = [5] + [index + 100] * 7000
        scheduler.add(make_request(f"waiting-{index}", prompt, max_tokens=8), now=0.0)
    totals = []
    for number in range(128):
        schedule, complete, _ = step(scheduler, 0.01 * number)
        totals.append(schedule + complete)
    assert scheduler.load().num_waiting == num_waiting
    print(
        f"decode step, batch  32, {num_waiting} waiting that do not fit   "
        f"mean of both {microseconds(totals, np.mean):6.1f}   target {TARGET_US[32]:4.0f}"
    )


def main() -> None:
    print("microseconds of this thread's CPU time")
    for num_running in TARGET_US:
        bench_decode(num_running)
    for policy in ("fcfs", "lpm", "preble_groups"):
        bench_start(policy, 400)
    bench_blocked(400)


if __name__ == "__main__":
    main()
