"""What the worker's scheduler itself costs per step, the engine stubbed.

python tests/bench/bench_local_scheduler.py
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from time import thread_time

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_engine import StubEngine
from worker_helpers import make_request

from preble.page_keys import namespace_page, pack_tokens
from preble_worker.config import DEFAULT_POLICY, SchedulerConfig
from preble_worker.outputs import StepOutputs
from preble_worker.page_cache import PageCache
from preble_worker.scheduler import LocalScheduler

NUM_STEPS = 400
PROMPT_TOKENS = 512
TARGET_US = {32: 150.0, 256: 400.0}


def make_scheduler(
    num_running: int, *, policy: str = DEFAULT_POLICY, full: bool = False
) -> LocalScheduler:
    """A scheduler whose `num_running` requests all decode, their prompts shared to 7/8.

    Args:
        full: other prompts fill the rest of the cache, so that every new page costs an eviction.
    """
    config = SchedulerConfig(
        num_pages=64 * num_running + 2048,
        max_batch_tokens=8192,
        max_sequences=num_running + 8,
        context_tokens=8192,
        policy=policy,
        eos_token_ids=(2,),
    )
    scheduler = LocalScheduler(config, epoch=1)
    index = 0
    while full and scheduler.load().free_pages > 500:
        scheduler.add(make_request(f"old-{index}", [index] * 8000, max_tokens=1), now=0.0)
        step(scheduler, 0.0)
        index += 1
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


def bench_decode(num_running: int, *, full: bool = False) -> None:
    scheduler = make_scheduler(num_running, full=full)
    schedules, completes, objects = [], [], []
    for number in range(NUM_STEPS):
        schedule, complete, outputs = step(scheduler, 0.01 * number)
        started = thread_time()
        assert len(outputs.outputs) == num_running
        objects.append(thread_time() - started)
        schedules.append(schedule)
        completes.append(complete)
    totals = [a + b for a, b in zip(schedules, completes, strict=True)]
    mean, target = microseconds(totals, fmean), TARGET_US[num_running]
    name = f"decode step, batch {num_running:>3}, cache {'full' if full else 'roomy'}"
    print(
        f"{name:<38}{microseconds(schedules, fmean):9.1f}{microseconds(completes, fmean):9.1f}"
        f"{mean:9.1f}{microseconds(totals, max):9.1f}{target:9.0f}  "
        f"{'met' if mean <= target else 'MISSED'};  "
        f"as RequestOutputs {microseconds(objects, fmean):.1f} more"
    )


def bench_churn(policy: str, num_running: int, output_tokens: int) -> None:
    """A steady state: as many requests start as end, with a little of everything in each step."""
    scheduler = make_scheduler(num_running, policy=policy, full=True)
    schedules, completes = [], []
    credit = 0.0
    for number in range(NUM_STEPS):
        credit += num_running / output_tokens
        while credit >= 1.0:
            credit -= 1.0
            name = f"new-{number}-{credit}"
            scheduler.cancel(f"running-{num_running - 1 - number % num_running}", now=0.0)
            scheduler.add(request(name, 500 + number, max_tokens=output_tokens), now=0.0)
        schedule, complete, _ = step(scheduler, 0.01 * number)
        schedules.append(schedule)
        completes.append(complete)
    totals = [a + b for a, b in zip(schedules, completes, strict=True)]
    print(
        f"{f'mixed step, about {num_running}, {policy}':<38}{microseconds(schedules, fmean):9.1f}"
        f"{microseconds(completes, fmean):9.1f}{microseconds(totals, fmean):9.1f}"
        f"{microseconds(totals, max):9.1f}"
    )


def bench_load() -> None:
    scheduler = make_scheduler(32)
    started = thread_time()
    for _ in range(1000):
        scheduler.load()
    print(f"{'load report':<38}{'':>18}{(thread_time() - started) * 1e3:9.1f}")


def bench_evict(num_pages: int) -> None:
    """One page at a time out of a full cache of short branches: flat, whatever its size."""
    cache = PageCache(num_pages, 16, epoch=1, sharing=True)
    root = namespace_page("", cache.page_bytes)
    for index in range(num_pages // 4):
        path = root + pack_tokens(np.full(64, index))
        node, _ = cache.pin(root)
        node, _ = cache.store(path, cache.allocate(4), pinned=node, held=0, seed=0, now=index)
        cache.unpin(node, now=index)
    cache.drain()
    count = min(num_pages, 10_000)
    started = thread_time()
    for _ in range(count):
        cache.free(cache.allocate(cache.num_free + 1))
    each = (thread_time() - started) / count * 1e6
    assert cache.num_free == count
    print(f"{f'evict a page of {num_pages:,}':<38}{'':>18}{each:9.1f}")


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
    totals = [a + b for a, b in zip(schedules, completes, strict=True)]
    print(
        f"{f'start 8 of {num_waiting}, {policy}':<38}{microseconds(schedules, fmean):9.1f}"
        f"{microseconds(completes, fmean):9.1f}{microseconds(totals, fmean):9.1f}"
        f"{microseconds(totals, max):9.1f}"
    )


def bench_blocked(policy: str, num_waiting: int) -> None:
    """Decode steps while the first of the queue finds no page, and is too long to be given one."""
    config = SchedulerConfig(
        num_pages=1400,
        max_batch_tokens=8192,
        max_sequences=64,
        context_tokens=8192 + 4096,
        policy=policy,
    )
    scheduler = LocalScheduler(config, epoch=1)
    for index in range(32):
        prompt = [index + 10] * PROMPT_TOKENS
        scheduler.add(make_request(f"running-{index}", prompt, max_tokens=4096), now=0.0)
    while scheduler.load().num_waiting:
        step(scheduler, 0.0)
    for index in range(num_waiting):
        prompt = [5] + [index + 100] * 7000
        scheduler.add(make_request(f"waiting-{index}", prompt, max_tokens=4096), now=0.0)
    step(scheduler, 0.0)  # The first look at them all.
    totals = []
    for number in range(128):
        schedule, complete, _ = step(scheduler, 0.01 * number)
        totals.append(schedule + complete)
    assert scheduler.load().num_waiting == num_waiting
    mean = microseconds(totals, fmean)
    print(
        f"{f'{num_waiting} do not fit, {policy}':<38}{'':>18}{mean:9.1f}"
        f"{microseconds(totals, max):9.1f}{TARGET_US[32]:9.0f}  "
        f"{'met' if mean <= TARGET_US[32] else 'MISSED'}"
    )


def main() -> None:
    print("microseconds of CPU time, mean over steps")
    print(f"{'':<38}{'schedule':>9}{'complete':>9}{'both':>9}{'worst':>9}{'target':>9}")
    for num_running in TARGET_US:
        bench_decode(num_running)
        bench_decode(num_running, full=True)
    for policy in ("preble_groups", DEFAULT_POLICY):
        bench_blocked(policy, 400)
        for num_running in TARGET_US:
            bench_churn(policy, num_running, output_tokens=100)
    for policy in ("fcfs", "lpm", "preble_groups", "alise"):
        bench_start(policy, 400)
    bench_load()
    for num_pages in (10_000, 100_000, 400_000):
        bench_evict(num_pages)


if __name__ == "__main__":
    main()
