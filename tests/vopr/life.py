"""What a simulated life begins with: drawn from a seed, or written down for a bug of the past."""

import random
from dataclasses import dataclass

from vopr.asks import Ask, Poison, draw_asks
from vopr.faults import Fault, draw_faults, storm
from vopr.workers import COST

from preble_router import policies as routing
from preble_router.cluster_tree import MAX_TREE_PAGES
from preble_worker import policies as local
from preble_worker.config import NO_TIERS, SchedulerConfig, TierConfig

BUSY_SECONDS = 4.0
"""When requests and faults begin, counted from the first second."""
ROUTING_POLICIES = ("preble",) * len(routing.POLICY_NAMES) + routing.POLICY_NAMES
LOCAL_POLICIES = ("preble_groups",) * 3 + local.POLICY_NAMES
AMPLE_LIVE = 64
"""Requests; only storms bring more."""
AMPLE = SchedulerConfig(num_pages=300, max_batch_tokens=256, max_sequences=16, context_tokens=600)

HOST_MEMORY = TierConfig(host_pages=60, page_copy_seconds=2e-4, cost=COST)


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
    max_tree_pages: int = MAX_TREE_PAGES
    max_live: int = AMPLE_LIVE
    max_queue_seconds: float = 0.0
    worker: SchedulerConfig = AMPLE

    @property
    def poison(self) -> frozenset[bytes]:
        """Prompts that bring workers down, or their engines."""
        return frozenset(ask.prompt for ask in self.asks if ask.poison is not Poison.NONE)

    @property
    def traits(self) -> dict[str, int]:
        """What it lives with, 1 for each."""
        return {
            "two routers": int(self.num_routers > 1),
            "small tree": int(self.max_tree_pages < MAX_TREE_PAGES),
            "few live requests": int(self.max_live < AMPLE_LIVE),
            "limit to the queue": int(self.max_queue_seconds > 0.0),
            "host memory": int(self.worker.tiers.host_pages > 0),
            "policy preble": int(self.policy == "preble"),
            "another policy": int(self.policy != "preble"),
        }


def draw_life(seed: int) -> Life:
    """Any, of all kinds."""
    rng = random.Random(f"{seed}/life")
    num_routers = rng.choice((1, 1, 2))
    num_workers = rng.choice((3, 4, 5))
    is_storm = rng.random() < 0.05
    faults = draw_faults(rng)
    limits = random.Random(f"{seed}/limits")  # Its own luck leaves the rest as it would be.
    return Life(
        seed=seed,
        num_routers=num_routers,
        num_workers=num_workers,
        num_static=rng.randrange(num_workers + 1),
        policy=rng.choice(ROUTING_POLICIES),
        expected_seconds=rng.choice((1.0, 10.0)),
        max_tree_pages=limits.choice((MAX_TREE_PAGES, MAX_TREE_PAGES, 20, 60, 120)),
        max_live=limits.choice((AMPLE_LIVE, AMPLE_LIVE, AMPLE_LIVE, 12)),
        max_queue_seconds=limits.choice((0.0, 0.0, 0.0, 0.1, 0.5)),
        worker=SchedulerConfig(
            num_pages=rng.choice((40, 80, 300)),
            max_batch_tokens=rng.choice((64, 256)),
            max_sequences=rng.choice((4, 16)),
            context_tokens=600,
            policy=rng.choice(LOCAL_POLICIES),
            tiers=limits.choice((NO_TIERS, NO_TIERS, HOST_MEMORY)),
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
