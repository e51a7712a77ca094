"""Links and membership: who is linked, who is turned away, who comes back, who is forgotten."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_worker import FakeWorker
from router_helpers import assert_exact, cluster, generation_request, num_ready, until

from preble.errors import InvalidRequest
from preble.page_keys import page_keys
from preble.types import LoadReport
from preble.v1 import worker_pb2 as pb
from preble_router import membership, worker_link
from preble_router.dispatch import Dispatcher
from preble_router.worker_link import Backoff

PATHS = [page_keys(bytes(range(256)) * 4), page_keys(bytes(reversed(range(256))) * 2)]


async def linked(dispatcher: Dispatcher, count: int) -> None:
    await until(lambda: num_ready(dispatcher) == count)


def states(dispatcher: Dispatcher) -> dict[str, str]:
    """State by worker id."""
    return {worker.worker_id: str(worker.state) for worker in dispatcher.status().workers}


def test_backoff_doubles_to_its_bound_with_jitter() -> None:
    backoff = Backoff(random.Random(0))
    bases = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert all(base / 2 <= backoff.delay() <= base for base in bases)
    backoff.reset()
    assert backoff.delay() <= 0.1
    assert Backoff(random.Random(1)).delay() != Backoff(random.Random(2)).delay()


async def test_the_router_introduces_itself_and_learns_what_the_worker_is() -> None:
    worker = FakeWorker("w0", capacity_tokens=4096)
    worker.snapshot_paths = PATHS
    async with cluster(worker) as dispatcher:
        (status,) = dispatcher.status().workers
        assert worker.router_ids == ["r0"]
        assert status.address == worker.address
        assert (status.engine, status.spec) == ("fake", worker.spec)
        assert status.held_pages == sum(len(path) // 8 for path in PATHS)
        assert status.snapshots_total == 1


async def test_a_snapshot_in_parts_is_one_snapshot() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        for path, more in zip(PATHS, (True, False), strict=True):
            part = pb.CacheSnapshot(epoch=1, seq=1, paths=[path], more=more)
            worker.push(pb.WorkerMessage(snapshot=part))
        await until(lambda: dispatcher.status().workers[0].snapshots_total == 2)
        held = dispatcher.status().workers[0].held_pages
        assert held == sum(len(path) // 8 for path in PATHS)


async def test_a_gap_in_the_events_asks_for_a_snapshot() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        batch = pb.CacheEvents(epoch=1, seq=5)
        batch.events.add().stored.path = PATHS[0]
        worker.snapshot_seq = 5
        worker.snapshot_paths = [PATHS[0]]
        worker.push(pb.WorkerMessage(step=pb.StepOutput(cache=batch)))
        await until(lambda: worker.num_snapshot_requests >= 1)
        await until(lambda: dispatcher.status().workers[0].held_pages == len(PATHS[0]) // 8)


async def test_load_reports_arrive() -> None:
    worker = FakeWorker()
    async with cluster(worker) as dispatcher:
        await until(lambda: dispatcher.status().workers[0].load is not None)
        assert dispatcher.status().workers[0].load == LoadReport(free_pages=4096)


async def test_a_restarted_worker_is_used_again_at_the_same_address() -> None:
    worker = FakeWorker("w0", epoch=1)
    worker.snapshot_paths = PATHS
    async with cluster(worker) as dispatcher:
        port = int(worker.address.rpartition(":")[2])
        await worker.stop()
        await until(lambda: states(dispatcher) == {"w0": "unreachable"})
        assert dispatcher.status().tree.held_pages == 0
        again = FakeWorker("w0", epoch=2)
        await again.start(port=port)
        await linked(dispatcher, 1)
        await assert_exact(dispatcher.start(generation_request()))
        assert len(again.submits) == 1
        await again.stop()


async def test_a_newer_process_of_the_same_name_takes_over_with_the_requests() -> None:
    old, new = FakeWorker("w0", epoch=1), FakeWorker("w0", epoch=2)
    async with cluster(old) as dispatcher:
        generation = dispatcher.start(generation_request(max_tokens=400))
        await until(lambda: generation.num_output_tokens > 3)
        dispatcher.add_worker(await new.start())
        await assert_exact(generation)
        assert [submit.attempt for submit in new.submits] == [2]
        assert old.num_links == 0
        await until(lambda: num_ready(dispatcher) == 1)
        by_address = {w.address: str(w.state) for w in dispatcher.status().workers}
        assert by_address == {old.address: "unreachable", new.address: "ready"}
        await new.stop()


@pytest.mark.parametrize(
    ("stranger", "complaint"),
    [
        (FakeWorker("w0", epoch=1), "linked at"),
        (FakeWorker("w0", epoch=0), "linked at"),
        (FakeWorker("w1", model="other"), "model 'other'"),
        (FakeWorker("w1", page_tokens=32), "pages of 32 tokens"),
    ],
)
async def test_who_is_turned_away(
    stranger: FakeWorker, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = FakeWorker("w0", epoch=1)
    async with cluster(worker) as dispatcher:
        dispatcher.add_worker(await stranger.start())
        await until(lambda: complaint in caplog.text)
        await until(lambda: stranger.num_links == 0)
        await assert_exact(dispatcher.start(generation_request()))
        assert (len(worker.submits), stranger.submits) == (1, [])
        assert num_ready(dispatcher) == 1
        await stranger.stop()


async def test_tokens_open_workers(caplog: pytest.LogCaptureFixture) -> None:
    worker = FakeWorker()
    await worker.start(token="secret")
    async with cluster(worker, worker_token="secret"):
        pass
    await worker.start(token="secret")
    async with cluster(worker_token="wrong") as dispatcher:
        dispatcher.add_worker(worker.address)
        await until(lambda: "UNAUTHENTICATED" in caplog.text)
        assert num_ready(dispatcher) == 0
        await worker.stop()


async def test_adding_is_idempotent_and_brings_a_lost_worker_back_at_once() -> None:
    worker = FakeWorker()
    async with cluster() as dispatcher:
        with pytest.raises(InvalidRequest, match="host:port"):
            dispatcher.add_worker("nowhere")
        address = await worker.start()
        for _ in range(3):
            dispatcher.add_worker(address)
        await linked(dispatcher, 1)
        dispatcher.add_worker(address)
        await asyncio.sleep(0.05)
        assert worker.num_links_total == 1
        port = int(address.rpartition(":")[2])
        await worker.stop()
        await until(lambda: num_ready(dispatcher) == 0)
        await asyncio.sleep(1.0)  # By now it is tried every second or two.
        await worker.start(port=port)
        dispatcher.add_worker(address)
        await until(lambda: num_ready(dispatcher) == 1, seconds=5)
        await worker.stop()


async def test_a_silent_worker_that_announces_itself_gets_a_new_link() -> None:
    worker = FakeWorker()
    async with cluster(worker, silence_seconds=0.4) as dispatcher:
        dispatcher.add_worker(worker.address)
        worker.faults.silent = True
        await until(lambda: states(dispatcher) == {"w0": "suspect"})
        worker.faults.silent = False
        dispatcher.add_worker(worker.address)
        await until(lambda: worker.num_links_total == 2)
        await linked(dispatcher, 1)


async def test_a_removed_worker_is_not_taken_back_until_it_restarts() -> None:
    worker = FakeWorker("w0", epoch=1)
    async with cluster(worker) as dispatcher:
        dispatcher.remove_worker("w0")
        assert dispatcher.status().workers == ()
        await until(lambda: worker.num_links == 0)
        dispatcher.add_worker(worker.address)  # As its announcements do, again and again.
        await until(lambda: worker.num_links_total == 2 and worker.num_links == 0)
        assert num_ready(dispatcher) == 0
        again = FakeWorker("w0", epoch=2)
        dispatcher.add_worker(await again.start())
        await linked(dispatcher, 1)
        await again.stop()


async def test_announced_workers_are_forgotten_and_configured_ones_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "FORGET_SECONDS", 0.2)
    configured, announced = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(configured) as dispatcher:
        dispatcher.add_worker(await announced.start())
        await linked(dispatcher, 2)
        await asyncio.sleep(0.3)
        assert num_ready(dispatcher) == 2, "only who is away is forgotten"
        await configured.stop()
        await announced.stop()
        await until(lambda: set(states(dispatcher)) == {"w0"})
        assert states(dispatcher) == {"w0": "unreachable"}


class Mute(FakeWorker):
    """Takes calls and says nothing, like a frozen process."""

    async def Link(
        self, requests: AsyncIterator[pb.RouterMessage], context: Any
    ) -> AsyncIterator[pb.WorkerMessage]:
        self.num_links_total += 1
        await asyncio.sleep(3600)
        yield pb.WorkerMessage()


class Rude(FakeWorker):
    """Begins with something else than Hello."""

    async def Link(
        self, requests: AsyncIterator[pb.RouterMessage], context: Any
    ) -> AsyncIterator[pb.WorkerMessage]:
        self.num_links_total += 1
        yield pb.WorkerMessage(step=pb.StepOutput())


@pytest.mark.parametrize(
    ("worker", "complaint"), [(Mute(), "no Hello"), (Rude(), "first message is not Hello")]
)
async def test_what_is_no_worker_is_tried_again(
    worker: FakeWorker,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(worker_link, "HELLO_SECONDS", 0.1)
    async with cluster() as dispatcher:
        dispatcher.add_worker(await worker.start())
        await until(lambda: worker.num_links_total >= 3)
        assert num_ready(dispatcher) == 0
        await worker.stop()
    assert caplog.text.count(complaint) == 1, "said once"


async def test_a_worker_that_answers_hello_only_is_not_ready() -> None:
    class Starting(FakeWorker):
        async def Link(
            self, requests: AsyncIterator[pb.RouterMessage], context: Any
        ) -> AsyncIterator[pb.WorkerMessage]:
            async for message in super().Link(requests, context):
                yield message
                await asyncio.sleep(3600)

    worker = Starting()
    async with cluster(silence_seconds=0.4) as dispatcher:
        dispatcher.add_worker(await worker.start())
        await until(lambda: states(dispatcher) == {"w0": "joining"})
        assert not dispatcher.is_ready
        await until(lambda: states(dispatcher) == {"w0": "suspect"})
        await worker.stop()
