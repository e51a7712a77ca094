"""What a simulated life begins with: drawn from a seed, or written down for a bug of the past."""

import random
from dataclasses import dataclass

from vopr.asks import Ask, draw_asks
from vopr.faults import Fault, draw_faults, storm

from preble_worker.config import SchedulerConfig

BUSY_SECONDS = 4.0
"""When requests and faults begin, counted from the first second."""
ROUTING_POLICIES = ("preble",) * 5 + ("e2", "round_robin", "power_of_two", "cache_aware")
LOCAL_POLICIES = ("preble_groups",) * 3 + ("fcfs", "lpm", "srpt", "mlfq", "dlpm", "edf", "alise")
AMPLE = SchedulerConfig(num_pages=300, max_batch_tokens=256, max_sequences=16, context_tokens=600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Everything that is not left to the luck of the moment.

    Attributes:
        seed: of all luck. num_static: workers that the routers know without being told.
        faults: each strikes at a moment drawn from the seed, but for those of a past bug.
    """

    seed: int
    asks: tuple[Ask, ...]
    faults: tuple[Fault, ...]
    num_routers: int = 1
    num_workers: int = 4
    num_static: int = 4
    policy: str = "preble"
    expected_seconds: float = 10.0
    worker: SchedulerConfig = AMPLE


def draw_life(seed: int) -> Life:
    """Any, of all kinds."""
    rng = random.Random(f"{seed}/life")
    num_routers = rng.choice((1, 1, 2))
    num_workers = rng.choice((3, 4, 5))
    is_storm = rng.random() < 0.05
    faults = draw_faults(rng)
    return Life(
        seed=seed,
        num_routers=num_routers,
        num_workers=num_workers,
        num_static=rng.randrange(num_workers + 1),
        policy=rng.choice(ROUTING_POLICIES),
        expected_seconds=rng.choice((1.0, 10.0)),
        worker=SchedulerConfig(
            num_pages=rng.choice((40, 80, 300)),
            max_batch_tokens=rng.choice((64, 256)),
            max_sequences=rng.choice((4, 16)),
            context_tokens=600,
            policy=rng.choice(LOCAL_POLICIES),
        ),
        faults=tuple([*faults, storm] if is_storm else faults),
        asks=tuple(
            draw_asks(
                rng,
                count=60 if is_storm else rng.choice((8, 16, 28)),
                seconds=0.5 if is_storm else BUSY_SECONDS,
            )
        ),
    )
