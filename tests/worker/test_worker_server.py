"""A worker over a real link on loopback: tokens, ends, refusals, and what its cache holds."""

import asyncio
import logging
import threading

from worker_link_helpers import (
    CONFIG,
    COST,
    VOCAB_SIZE,
    Gate,
    link,
    oracle,
    pause,
    prompt_of,
    simulated,
    worker,
)

from preble import wire
from preble.page_keys import pack_tokens
from preble.types import FinishReason, SamplingParams
from preble.v1 import worker_pb2 as pb
from preble.wire import hello_from_wire
from preble_worker import server
from preble_worker.config import WorkerConfig
from preble_worker.server import WorkerServer

# What a router gets


async def test_hello_says_what_the_worker_is():
    async with (
        worker(simulated(num_pages=50, page_tokens=8, max_sequences=9), worker_id="w7") as running,
        link(running.address) as router,
    ):
        spec = hello_from_wire(router.hello)
        assert (spec.worker_id, spec.model, spec.cost) == ("w7", "m", COST)
        assert (spec.page_tokens, spec.capacity_tokens, spec.max_sequences) == (8, 400, 9)
        assert (spec.vocab_size, spec.context_tokens) == (VOCAB_SIZE, 4096)
        assert router.hello.engine == "simulated"
        assert router.hello.version


async def test_tokens_are_the_oracles_and_the_prefix_is_served_from_cache():
    prompt = prompt_of(100)
    async with worker() as running, link(running.address) as router:
        for request_id, cached in (("a", 0), ("b", 96)):
            await router.submit(request_id, prompt, 20, seed=11)
            result = await router.finished(request_id)
            assert result.tokens == oracle(prompt, 20, seed=11)
            assert result.finish_reason is FinishReason.LENGTH
            assert result.cached_tokens == cached
        assert router.steps[-1].load.cached_tokens_total == 96


async def test_many_streams_at_once_lose_and_double_nothing():
    async with worker() as running, link(running.address) as router:
        prompts = {f"r{i}": prompt_of(50 + 7 * i, seed=i % 5) for i in range(120)}
        for request_id, prompt in prompts.items():
            await router.submit(request_id, prompt, 30)
        for request_id, prompt in prompts.items():
            assert (await router.finished(request_id)).tokens == oracle(prompt, 30)


async def test_a_resumed_attempt_goes_on_where_the_other_broke_off():
    prompt, whole = prompt_of(40), oracle(prompt_of(40), 12)
    async with worker() as running, link(running.address) as router:
        delivered = pack_tokens(whole[:5])
        await router.submit("a", prompt + delivered, 12, attempt=2, num_delivered=5)
        assert (await router.finished("a")).tokens == whole[5:]


async def test_a_cancelled_request_ends_within_a_step_and_frees_its_pages():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(64), 4000)
        await router.until(lambda: len(router.requests["a"][0].tokens) > 3)
        assert router.steps[-1].load.used_pages > 4
        await router.cancel("a")
        assert (await router.finished("a")).finish_reason is FinishReason.CANCELLED
        assert router.steps[-1].load.used_pages == 0
        assert router.steps[-1].load.num_running == 0


async def test_cancelling_what_is_unknown_or_another_attempt_changes_nothing():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 30, attempt=2)
        await router.cancel("a", attempt=1)
        await router.cancel("b")
        assert (await router.finished("a")).finish_reason is FinishReason.LENGTH


async def test_a_later_attempt_replaces_an_earlier_one():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 3000, attempt=1)
        await router.until(lambda: bool(router.requests["a"][0].tokens))
        await router.submit("a", prompt_of(20), 5, attempt=2)
        assert (await router.finished("a", attempt=2)).tokens == oracle(prompt_of(20), 5)
        assert (await router.finished("a", attempt=1)).finish_reason is FinishReason.CANCELLED


async def test_a_deadline_is_counted_from_receipt():
    async with worker(simulated(sleep=pause)) as running, link(running.address) as router:
        await router.submit("a", prompt_of(20), 4000, deadline_at=0.1)
        assert (await router.finished("a")).finish_reason is FinishReason.DEADLINE


async def test_impossible_requests_are_refused_with_a_reason_and_others_go_on():
    impossible = {
        "a": (pack_tokens([5, VOCAB_SIZE]), {}, "vocabulary"),
        "b": (b"", {}, "whole tokens"),
        "c": (prompt_of(5000), {}, ""),
        "d": (prompt_of(9), {"sampling": SamplingParams(max_tokens=1, top_p=0.0)}, "top_p"),
    }
    async with worker() as running, link(running.address) as router:
        for request_id, (prompt, options, _) in impossible.items():
            await router.submit(request_id, prompt, 4, **options)
        for request_id, (_, _, words) in impossible.items():
            refused = await router.finished(request_id)
            assert refused.finish_reason is FinishReason.REFUSED
            assert words in refused.error
            assert refused.error
        await router.submit("e", prompt_of(20), 4)
        assert (await router.finished("e")).tokens == oracle(prompt_of(20), 4)


async def test_an_idle_worker_is_heard_from_its_step_loop():
    async with worker() as running, link(running.address) as router:
        first, second = await router.next_step(), await router.next_step()
        assert first.phase == second.phase == pb.PHASE_IDLE
        assert first.step == second.step == 0
        assert first.step_seconds == 0.0
        assert first.load.free_pages == 400


# What the cache events say


async def test_events_lead_where_snapshots_say_under_page_pressure():
    """`LinkClient` asserts it: no gap, digests equal, and each snapshot equals the replay."""
    async with worker(simulated(num_pages=40)) as running, link(running.address) as router:
        for i in range(60):
            await router.submit(f"r{i}", prompt_of(30 + 11 * (i % 20), seed=i % 6), 20)
            if i % 10 == 9:
                # One at a time: the worker sends no second while one is under way.
                await router.until(lambda known=1 + i // 10: len(router.snapshots) == known)
                await router.send(snapshot_request=pb.SnapshotRequest())
        for i in range(60):
            assert (await router.finished(f"r{i}")).finish_reason is FinishReason.LENGTH
        await router.until(lambda: len(router.snapshots) == 7)
        kinds = {e.WhichOneof("event") for s in router.steps for e in s.cache.events}
        assert kinds == {"stored", "evicted"}
        async with link(running.address, "r2") as late:
            await router.send(snapshot_request=pb.SnapshotRequest())
            await router.until(lambda: len(router.snapshots) == 8)
            assert late.held.paths == router.held.paths
            assert late.held.paths


async def test_a_router_that_returns_finds_the_cache_in_its_snapshot():
    async with worker() as running:
        async with link(running.address) as router:
            await router.submit("a", prompt_of(200), 4)
            await router.finished("a")
            held, epoch = set(router.held.paths), router.hello.epoch
        async with link(running.address) as router:
            assert router.hello.epoch == epoch
            assert router.held.paths == held
            assert len(held) == 12
            await router.submit("a", prompt_of(200), 4)
            assert (await router.finished("a")).cached_tokens == 192


async def test_a_large_snapshot_comes_in_parts(monkeypatch):
    monkeypatch.setattr(wire, "SNAPSHOT_PART_BYTES", 200)
    async with worker() as running, link(running.address) as router:
        for i in range(20):
            await router.submit(f"r{i}", prompt_of(100, seed=i), 4)
            await router.finished(f"r{i}")
        async with link(running.address, "r2") as late:
            assert len(late.snapshots[0].paths) == 20
            assert late.num_snapshot_parts > 2
            assert late.held.paths == router.held.paths


async def test_a_worker_that_never_started_stops():
    idle = WorkerServer(WorkerConfig(**CONFIG), simulated())
    await idle.stop(drain_seconds=10.0)
    await idle.wait()


async def test_two_servers_have_two_epochs_the_later_the_larger():
    async with (
        worker() as first,
        link(first.address) as one,
        worker() as second,
        link(second.address) as two,
    ):
        assert one.hello.epoch < two.hello.epoch
        assert one.hello.worker_id != two.hello.worker_id


def test_an_engine_that_was_abandoned_in_a_step_comes_back_to_nobody(monkeypatch, caplog):
    gate, broken = Gate(), []
    monkeypatch.setattr(server, "JOIN_SECONDS", 0.05)
    monkeypatch.setattr(threading, "excepthook", broken.append)

    async def stop_in_a_step() -> None:
        running = WorkerServer(WorkerConfig(**CONFIG), simulated(sleep=gate))
        async with link(await running.start()) as router:
            await router.submit("a", prompt_of(20), 50)
            assert await asyncio.to_thread(gate.entered.wait, 20.0)
            await running.stop(drain_seconds=0.0)

    before = set(threading.enumerate())
    asyncio.run(stop_in_a_step())
    (loop,) = (t for t in set(threading.enumerate()) - before if t.name == "engine-loop")
    gate.open()
    loop.join(20.0)
    assert not loop.is_alive()
    assert not broken
    assert not [r for r in caplog.records if r.levelno == logging.CRITICAL]
