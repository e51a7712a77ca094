"""Several routers on the same workers, without a word between them; and trees that are wrong."""

import asyncio
import random
import time
from contextlib import suppress
from pathlib import Path

from cluster_processes import ClusterProcesses
from linked_cluster import assert_oracle, dispatcher_over, make_worker, request, running
from oracle_streams import family_streams
from router_helpers import until

from preble import AsyncClient
from preble.errors import PrebleError
from preble.events import CacheEvents, CacheSnapshot, Evicted, Stored
from preble.page_keys import KEY_BYTES
from preble_router.dispatch import Dispatcher
from preble_router.stimuli import CacheChanged, SnapshotReceived


def digest(dispatcher: Dispatcher) -> str:
    return dispatcher.status().tree.digest


def agrees(dispatcher: Dispatcher) -> bool:
    """The router believes of each worker what the worker says of itself."""
    return all(
        worker.load is not None
        and (worker.held_pages, worker.held_key_sum)
        == (worker.load.tree_pages, worker.load.tree_key_sum)
        for worker in dispatcher.status().workers
    )


def agree_on_all(one: Dispatcher, other: Dispatcher) -> bool:
    """Either may have heard less than the other so far, and agree with what it has heard."""
    return agrees(one) and agrees(other) and digest(one) == digest(other)


async def test_two_routers_come_to_the_same_tree() -> None:
    async with (
        running(make_worker("w0"), make_worker("w1")) as addresses,
        dispatcher_over(*addresses) as one,
        dispatcher_over(*addresses, policy="round_robin") as other,
    ):
        generations = [(one, other)[i % 2].start(request(i)) for i in range(20)]
        await asyncio.gather(*map(assert_oracle, generations))
        await until(lambda: agree_on_all(one, other))
        before = digest(one)
        generation = one.start(request(100))
        await assert_oracle(generation)
        await until(lambda: agree_on_all(one, other) and digest(one) != before)


async def test_a_router_avoids_the_worker_that_another_one_loads() -> None:
    async with (
        running(make_worker("w0"), make_worker("w1")) as addresses,
        dispatcher_over(*addresses, policy="least_loaded") as one,
        dispatcher_over(addresses[0], policy="round_robin") as other,
    ):
        # Neither worker is new any more: who has shown nothing yet is sent little.
        known = [one.start(request(200 + i)) for i in range(40)]
        await asyncio.gather(*map(assert_oracle, known))
        theirs = [other.start(request(i, max_tokens=400)) for i in range(30)]
        await until(
            lambda: any(
                worker.load is not None and worker.load.num_running > 20
                for worker in one.status().workers
            )
        )
        mine = [one.start(request(100 + i, max_tokens=20)) for i in range(8)]
        assert {generation.worker_id for generation in mine} == {"w1"}
        await asyncio.gather(*map(assert_oracle, [*mine, *theirs]))


async def test_a_tree_that_is_wrong_makes_no_wrong_token() -> None:
    rng = random.Random(8)
    async with (
        running(make_worker("w0"), make_worker("w1")) as addresses,
        dispatcher_over(*addresses) as dispatcher,
    ):
        live = [
            asyncio.create_task(assert_oracle(dispatcher.start(request(i, max_tokens=100))))
            for i in range(30)
        ]
        for i in range(30, 60):
            corrupt(dispatcher, rng)
            await asyncio.sleep(0.02)
            live.append(asyncio.create_task(assert_oracle(dispatcher.start(request(i)))))
        await asyncio.gather(*live)
        await until(lambda: agrees(dispatcher), seconds=30.0)
        assert sum(worker.differences_total for worker in dispatcher.status().workers) > 0


def corrupt(dispatcher: Dispatcher, rng: random.Random) -> None:
    """Have the scheduler believe of some worker what is not so."""
    worker = rng.choice([w for w in dispatcher.status().workers if w.spec is not None])
    assert worker.spec is not None
    epoch, now = worker.spec.epoch, time.monotonic()
    known = dispatcher.attempts.page_keys(request(rng.randrange(60)).tokens, "")
    path = rng.choice([known, rng.randbytes(KEY_BYTES * rng.randrange(1, 30))])
    if rng.random() < 0.3:
        snapshot = CacheSnapshot(epoch, 1 << 40, (path,))
        dispatcher.scheduler.observe(SnapshotReceived(worker.worker_id, snapshot), now=now)
        return
    event = Stored(path) if rng.random() < 0.5 else Evicted(path, rng.randrange(3))
    seq = dispatcher.scheduler.workers()[0].spec.epoch if rng.random() < 0.1 else rng.randrange(50)
    batch = CacheEvents(epoch, seq, (event,))
    dispatcher.scheduler.observe(CacheChanged(worker.worker_id, batch), now=now)


async def test_streams_of_a_killed_router_end_on_the_workers_and_others_go_on(
    tmp_path: Path,
) -> None:
    """Two router processes on the same workers; one is killed with its streams running."""
    with ClusterProcesses(tmp_path, workers=2) as cluster:
        addresses = [worker["address"] for worker in cluster.workers()]
        other = cluster.start_other_router()
        streams = family_streams(16, families=4, shared=256, own=32, max_tokens=1500, seed=1)
        doomed, spared = streams[::2], streams[1::2]
        async with (
            AsyncClient(cluster.grpc_address) as through_killed,
            AsyncClient(other) as through_other,
        ):
            await joined(through_other, addresses)
            tasks = [asyncio.create_task(s.run(through_killed, within_seconds=60)) for s in doomed]
            kept = [asyncio.create_task(s.run(through_other, within_seconds=120)) for s in spared]
            await until(lambda: all(len(stream.tokens) > 4 for stream in streams))
            cluster.kill("router")
            killed_at = time.monotonic()
            await until_few_live(through_other, len(spared))
            ended_after = time.monotonic() - killed_at
            assert not any(task.done() for task in kept), "they run as long as the others would"
            await asyncio.gather(*tasks, *kept)
            state = await through_other.cluster()
        vocab_size = next(w.spec.vocab_size for w in state.workers if w.spec is not None)
        excluded = cluster.excluded_tokens()
    assert ended_after <= 5.0, "0.04 s on a machine that does nothing else; a second is promised"
    assert all(stream.error for stream in doomed)
    assert [stream.verdict(vocab_size, excluded) for stream in spared] == [""] * len(spared)


async def joined(client: AsyncClient, addresses: list[str]) -> None:
    """Give the client's router the workers, once it answers."""
    async with asyncio.timeout(60):
        while True:
            with suppress(PrebleError):
                for address in addresses:
                    await client.add_worker(address)
                state = await client.cluster()
                if [str(worker.condition) for worker in state.workers] == ["ready"] * 2:
                    return
            await asyncio.sleep(0.1)


async def until_few_live(client: AsyncClient, limit: int) -> None:
    """Wait until the workers have at most `limit` requests, of all routers."""
    async with asyncio.timeout(30):
        while True:
            loads = [worker.load for worker in (await client.cluster()).workers]
            if sum(load.num_running + load.num_waiting for load in loads) <= limit:
                return
            await asyncio.sleep(0.02)
