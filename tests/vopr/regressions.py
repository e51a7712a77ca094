"""Bugs of the past, each as the shortest life that shows it: written down, as the meaning of a seed
changes with what is drawn from it.

`make vopr` begins with them, and so does every hunt for a planted bug.
"""

import asyncio
import random
from dataclasses import dataclass

from vopr.asks import Ask, Poison
from vopr.life import Life
from vopr.network import UP
from vopr.workers import VOCAB_SIZE
from vopr.world import Verdict, World, run_life

from preble.page_keys import pack_tokens


@dataclass(frozen=True, slots=True)
class Regression:
    """What was wrong, and how the requests of a life that shows it must end.

    Attributes:
        mutant: planted again, which the life must find.
        most_lost: workers that may die of it.
    """

    was_wrong: str
    mutant: str
    life: Life
    ends: dict[str, int]
    most_lost: int = 5

    def live(self) -> Verdict:
        """Once more. A wrong end is a violation, too."""
        verdict = run_life(self.life)
        if not verdict.violation and verdict.outcomes != self.ends:
            verdict.violation = f"{self.was_wrong}: {dict(verdict.outcomes)}, not {self.ends}"
        if not verdict.violation and (lost := verdict.struck["poison kills"]) > self.most_lost:
            verdict.violation = f"{self.was_wrong}: {lost} are lost"
        return verdict


def _prompt(number: int, *, size: int = 40) -> bytes:
    rng = random.Random(number)
    return pack_tokens([rng.randrange(3, VOCAB_SIZE) for _ in range(size)])


def _crowd(count: int, *, max_tokens: int) -> tuple[Ask, ...]:
    """That comes at once, with nothing in common."""
    return tuple(
        Ask(name=f"q{i}", prompt=_prompt(i), seed=i, max_tokens=max_tokens) for i in range(count)
    )


def _poison(
    poison: Poison, *, at: float = 1.0, num_choices: int = 1, name: str = "q0"
) -> tuple[Ask, ...]:
    """So long a prompt that its choices go to one worker."""
    return (
        Ask(
            name=name,
            prompt=_prompt(0, size=500),
            max_tokens=20,
            at=at,
            num_choices=num_choices,
            poison=poison,
        ),
    )


async def silence_of_all(world: World, rng: random.Random) -> None:
    """Until their links are given up, the last one's first: what they said meanwhile is lost."""
    addresses = [host.address for host in reversed(world.hosts)]
    await _silence(world, addresses, at=1.0, seconds=8.5)


async def silence_of_one_after_the_other(world: World, rng: random.Random) -> None:
    """The second before the first is ejected."""
    first, second, *_ = [host.address for host in world.hosts]
    await asyncio.gather(
        _silence(world, [first], at=1.2, seconds=5.0),
        _silence(world, [second], at=1.5, seconds=5.0),
    )


async def _silence(world: World, addresses: list[str], *, at: float, seconds: float) -> None:
    await asyncio.sleep(at)
    world.strike("one-way partition", *addresses, UP)
    for address in addresses:
        world.network.block("r0", address, UP)
    await asyncio.sleep(seconds)
    for address in addresses:
        world.network.unblock("r0", address, UP)


async def all_are_slow(world: World, rng: random.Random) -> None:
    """A step takes half a second for as long as there is poison."""
    for host in world.hosts:
        host.slowness = 30.0
        world.strike("slow", host.name, host.slowness)
    await asyncio.sleep(6.0)
    for host in world.hosts:
        host.slowness = 1.0


async def engine_error_while_the_other_is_away(world: World, rng: random.Random) -> None:
    """The request is on one of two workers; the other is being started again."""
    await asyncio.sleep(1.2)
    here = next(host for host in world.hosts if host.process and host.process.scheduler.num_live)
    other = next(host for host in world.hosts if host is not here)
    other.restart_seconds = 1.0
    other.kill()
    world.strike("engine errors", here.name)
    here.failing_steps = 1


REGRESSIONS = (
    Regression(
        "who was moved from one silent worker to another looked poisoned",
        "everybody_on_a_silent_worker_is_blamed",
        Life(seed=1, asks=_crowd(16, max_tokens=200), faults=(silence_of_one_after_the_other,)),
        {"length": 16},
    ),
    Regression(
        "of the choices of a poisoned prompt each took a worker",
        "suspects_of_one_kind_are_tried_side_by_side",
        Life(
            seed=2,
            asks=_poison(Poison.KILLS, num_choices=4),
            faults=(),
            num_workers=5,
            policy="sticky",
        ),
        {"poisoned_request": 4},
        most_lost=2,
    ),
    Regression(
        "who came to a silent worker was not blamed when that was found dead",
        "who_came_in_a_silence_is_never_blamed",
        Life(seed=3, asks=_poison(Poison.KILLS, at=1.8), faults=(silence_of_all,)),
        {"poisoned_request": 1},
    ),
    Regression(
        "a request on which each engine fails was not blamed, and failed others with it",
        "engines_that_fail_blame_nobody",
        Life(seed=4, asks=_poison(Poison.RAISES), faults=()),
        {"poisoned_request": 1},
    ),
    Regression(
        "who failed with an engine ended at once where no other worker was ready",
        "broken_requests_do_not_wait",
        Life(
            seed=5,
            asks=_crowd(1, max_tokens=100),
            faults=(engine_error_while_the_other_is_away,),
            num_workers=2,
        ),
        {"length": 1},
    ),
    Regression(
        "who was refused as poisoned was suspected once more when its last worker died",
        "the_poisoned_are_suspected_anew",
        Life(
            seed=6,
            asks=_poison(Poison.KILLS, num_choices=4),
            faults=(),
            num_workers=5,
            policy="round_robin",
        ),
        {"poisoned_request": 4},
    ),
    Regression(
        "where steps are slow, suspects met before their first one, and poison took a third worker",
        "suspects_wait_no_longer_for_slow_steps",
        Life(
            seed=7,
            asks=(*_crowd(32, max_tokens=40), *_poison(Poison.KILLS, at=3.0, name="poison")),
            faults=(all_are_slow,),
        ),
        {"length": 32, "poisoned_request": 1},
        most_lost=2,
    ),
)
