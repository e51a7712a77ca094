"""What goes wrong. Each fault is a coroutine that draws its particulars, strikes, and is healed."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from vopr.mangles import (
    OF_EVENTS,
    OF_OUTPUTS,
    events_delayed,
    events_reordered,
    last_events_lost,
)
from vopr.network import DOWN, UP, Mangle
from vopr.workers import Host, Process

if TYPE_CHECKING:
    from vopr.world import World

Fault = Callable[["World", random.Random], Awaitable[None]]


async def kill(world: "World", rng: random.Random) -> None:
    """A worker dies, and comes back, perhaps elsewhere and with another wall clock."""
    host = rng.choice(world.hosts)
    host.restart_seconds = rng.choice((0.05, 0.5, 3.0, 8.0))
    if rng.random() < 0.3:
        _step_clock(world, rng, host)
    if rng.random() < 0.3:
        host.port += 1
    world.strike("kill", host.name)
    host.kill()
    await asyncio.sleep(host.restart_seconds)


async def kill_busiest(world: "World", rng: random.Random) -> None:
    """The worker with most requests dies."""
    host = max(world.hosts, key=lambda h: h.process.scheduler.num_live if h.process else -1)
    host.restart_seconds = 0.5
    world.strike("kill busiest", host.name)
    host.kill()
    await asyncio.sleep(host.restart_seconds)


async def cascade(world: "World", rng: random.Random) -> None:
    """All workers die again and again, one soon after the other."""
    world.strike("cascade")
    for _ in range(rng.randrange(2, 5)):
        for host in world.hosts:
            host.restart_seconds = 0.02
            host.kill()
            await asyncio.sleep(rng.uniform(0.05, 0.3))


async def storm(world: "World", rng: random.Random) -> None:
    """Each worker dies as soon as it has a few requests, for a while."""
    world.strike("storm")
    for _ in range(60):
        for host in world.hosts:
            if host.process is not None and host.process.scheduler.num_live > 2:
                host.restart_seconds = 0.02
                host.kill()
        await asyncio.sleep(0.1)


async def hang(world: "World", rng: random.Random) -> None:
    """A step never ends, or much too late; the service answers."""
    process = _some_process(world, rng)
    if process is not None:
        seconds = rng.choice((0.5, 2.5, 6.0, 14.0))
        world.strike("hang", process.address, seconds)
        process.hang()
        await asyncio.sleep(seconds)
        process.unhang()
        _disturbed(world, process.address)


async def freeze(world: "World", rng: random.Random) -> None:
    """A whole process is stopped, and continued: its old messages come late."""
    process = _some_process(world, rng)
    if process is not None:
        seconds = rng.choice((1.0, 3.0, 6.0, 14.0))
        world.strike("freeze", process.address, seconds)
        await _freeze(world, process, seconds)


async def _freeze(world: "World", process: Process, seconds: float) -> None:
    process.hang()
    for router in world.router_names:
        world.network.block(router, process.address, UP, DOWN)
    await asyncio.sleep(seconds)
    process.unhang()
    for router in world.router_names:
        world.network.unblock(router, process.address, UP, DOWN)


async def twin(world: "World", rng: random.Random) -> None:
    """A frozen process is replaced elsewhere under the same name, and then wakes."""
    host = rng.choice(world.hosts)
    if rng.random() < 0.3:
        _step_clock(world, rng, host)
    host.restart_seconds = 0.3
    process = host.move()
    if process is not None:
        seconds = rng.choice((1.0, 4.0, 9.0))
        world.strike("twin", host.name, seconds)
        world.zombies.append(process)
        await _freeze(world, process, seconds)
        await asyncio.sleep(rng.choice((0.5, 4.0)))
        process.end()
        world.zombies.remove(process)


async def slow(world: "World", rng: random.Random) -> None:
    """An engine computes slowly."""
    host = rng.choice(world.hosts)
    host.slowness = rng.choice((3.0, 10.0, 40.0))
    world.strike("slow", host.name, host.slowness)
    await asyncio.sleep(rng.uniform(1.0, 8.0))
    host.slowness = 1.0
    _disturbed(world, host.address)


async def partition(world: "World", rng: random.Random) -> None:
    """A router and some workers cannot reach each other, or one cannot reach the other."""
    router = rng.choice(world.router_names)
    hosts = rng.sample(world.hosts, rng.randrange(1, len(world.hosts) + 1))
    directions = rng.choice(((UP, DOWN), (UP,), (DOWN,)))
    seconds = rng.choice((0.3, 2.5, 5.0, 10.0))
    addresses = [host.address for host in hosts]
    kind = "partition" if len(directions) == 2 else "one-way partition"
    world.strike(kind, router, *addresses, *directions, seconds)
    for address in addresses:
        world.network.block(router, address, *directions)
    await asyncio.sleep(seconds)
    for address in addresses:
        world.network.unblock(router, address, *directions)


async def reset(world: "World", rng: random.Random) -> None:
    """Connections break, and nobody dies of it."""
    host = rng.choice(world.hosts)
    world.strike("reset", host.address)
    world.network.sever(address=host.address)


async def engine_errors(world: "World", rng: random.Random) -> None:
    """Steps of an engine raise; three in a row end its process."""
    host = rng.choice(world.hosts)
    host.restart_seconds = 0.5
    host.failing_steps = rng.choice((1, 2, 3))
    world.strike("engine errors", host.name, host.failing_steps)
    await asyncio.sleep(1.0)


async def drain(world: "World", rng: random.Random) -> None:
    """A router drains a worker, which ends and is started anew."""
    host = rng.choice(world.hosts)
    router = rng.choice(world.routers).router
    if router is not None and host.name in router.dispatcher.membership.sessions:
        host.restart_seconds = rng.choice((0.1, 2.0))
        deadline = rng.choice((None, 0.0, 0.5, 3.0))
        world.strike("drain", router.name, host.name, deadline)
        router.dispatcher.drain_worker(host.name, deadline_seconds=deadline)
        await asyncio.sleep(6.0)


async def router_restart(world: "World", rng: random.Random) -> None:
    """A router dies; the next one comes after a while."""
    host = rng.choice(world.routers)
    if host.router is not None:
        world.strike("router restart", host.name)
        await world.stop_router(host)
        await asyncio.sleep(rng.choice((0.0, 0.5, 2.0)))
        world.start_router(host)


async def suspend(world: "World", rng: random.Random) -> None:
    """The machine is suspended: all clocks go on, and nobody has run."""
    seconds = rng.choice((0.5, 3.0, 30.0))
    world.strike("suspend", seconds)
    world.loop.jump(seconds)
    for wire in world.network.wires:
        wire.disturbed_at = world.loop.time()


async def wrong_events(world: "World", rng: random.Random) -> None:
    """Some of a worker's cache events or digests are lost, doubled, late or wrong."""
    mangles: list[Mangle] = []
    for _ in range(rng.randrange(1, 6)):
        pick = rng.randrange(len(OF_EVENTS) + 2)
        if pick < len(OF_EVENTS):
            mangles.append(OF_EVENTS[pick])
        else:
            mangles += (events_reordered, events_delayed)[pick - len(OF_EVENTS)]()
    await _mangle(world, rng, mangles)


async def lost_last_events(world: "World", rng: random.Random) -> None:
    """What a worker says last of its cache, before it falls idle, is lost."""
    await asyncio.sleep(rng.uniform(0.0, 3.0))
    await _mangle(world, rng, [last_events_lost] * rng.randrange(1, 4))


async def wrong_outputs(world: "World", rng: random.Random) -> None:
    """Outputs are lost, doubled or shifted."""
    await _mangle(world, rng, [rng.choice(OF_OUTPUTS) for _ in range(rng.randrange(1, 3))])


async def wrong_tree(world: "World", rng: random.Random) -> None:
    """What a router believes of a worker's cache is forgotten or made up."""
    router = rng.choice(world.routers).router
    if router is not None and router.dispatcher.membership.sessions:
        worker_id = rng.choice(sorted(router.dispatcher.membership.sessions))
        world.strike("wrong tree", router.name, worker_id)
        scheduler = router.dispatcher.scheduler
        slot = next(w.slot for w in scheduler._roster if w.spec.worker_id == worker_id)
        if rng.random() < 0.5:
            scheduler._tree.forget(slot)
        wire = router.trees.wire_to(router.dispatcher.membership.sessions[worker_id])
        paths = wire.feed.paths if wire is not None else ()
        for path in sorted(paths)[: rng.randrange(4)]:
            scheduler._tree.store(slot, path)


async def _mangle(world: "World", rng: random.Random, mangles: Sequence[Mangle]) -> None:
    host = rng.choice(world.hosts)
    world.tell("mangle", host.address, *(mangle.__name__ for mangle in mangles))
    world.network.mangles.setdefault(host.address, deque()).extend(mangles)
    await asyncio.sleep(3.0)
    world.network.mangles.pop(host.address, None)


FAULTS: tuple[tuple[Fault, int], ...] = (
    (kill, 4),
    (kill_busiest, 3),
    (cascade, 1),
    (hang, 3),
    (freeze, 3),
    (twin, 2),
    (slow, 2),
    (partition, 3),
    (reset, 2),
    (engine_errors, 2),
    (drain, 3),
    (router_restart, 2),
    (suspend, 1),
    (wrong_events, 4),
    (lost_last_events, 2),
    (wrong_outputs, 3),
    (wrong_tree, 1),
)
"""With their weights."""


ANY_TIME = frozenset([*(fault for fault, _ in FAULTS), storm])
"""Those that strike at a moment drawn from the seed."""
KINDS = (
    *("kill", "kill busiest", "cascade", "storm", "hang", "freeze", "twin", "slow", "reset"),
    *("partition", "one-way partition", "engine errors", "drain", "router restart", "suspend"),
    *("wall clock step", "wrong tree", "poison kills", "poison raises", "burst"),
    *("client gives up", "client vanishes", "client stalls"),
    *(mangle.__name__ for mangle in (*OF_EVENTS, *OF_OUTPUTS)),
    *("events_reordered", "events_delayed", "last_events_lost"),
    *("snapshot is asked for", "tree makes room", "quota spares a namespace"),
    *("router is full", "too late everywhere"),
)
"""All that is counted when it strikes."""


def draw_faults(rng: random.Random) -> list[Fault]:
    """A few, of all kinds."""
    kinds, weights = zip(*FAULTS, strict=True)
    return rng.choices(kinds, weights, k=rng.choice((0, 1, 2, 2, 3, 4, 6)))


def _step_clock(world: "World", rng: random.Random, host: Host) -> None:
    """From its next process on, its wall clock is wrong."""
    host.wall_clock_offset = rng.uniform(-3600.0, 3600.0)
    world.strike("wall clock step", host.name)


def _some_process(world: "World", rng: random.Random) -> Process | None:
    host: Host = rng.choice(world.hosts)
    return host.process


def _disturbed(world: "World", address: str) -> None:
    """What it says now may be late."""
    for wire in world.network.between(None, address):
        wire.disturbed_at = world.loop.time()
