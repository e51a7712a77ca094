"""Which requests are taken to bring workers down, in the book and by a router with real links."""

import asyncio
from dataclasses import replace

import pytest
from fake_worker import FakeWorker
from router_helpers import assert_exact, cluster, collect, generation_request, num_ready, until

from preble.errors import PoisonedRequest, WorkerFailed
from preble.page_keys import pack_tokens
from preble.types import SamplingParams
from preble.v1 import worker_pb2 as pb
from preble_router.dispatch import Dispatcher
from preble_router.generation import Delta
from preble_router.poison import (
    ALIBI_TOKENS,
    MOST_REMEMBERED,
    POISONED_SECONDS,
    SUSPECTED_SECONDS,
    PoisonBook,
    fingerprint,
)
from preble_router.step_pace import StepPace

A, B, C, D = b"a", b"b", b"c", b"d"


def failures(*sets: dict[bytes, int], book: PoisonBook | None = None) -> PoisonBook:
    """A book that was told of one failure a second, each of another worker."""
    book = book or PoisonBook()
    for index, running in enumerate(sets):
        book.failed(f"w{index}/1", running.items(), now=float(index))
        book.check()
    return book


def poisoned(book: PoisonBook, now: float = 10.0) -> set[bytes]:
    return {mark for mark in (A, B, C, D) if book.is_poisoned(mark, now=now)}


def test_who_was_at_two_failures_is_guilty() -> None:
    assert poisoned(failures({A: 0, B: 0, C: 0})) == set()
    assert poisoned(failures({A: 0, B: 0, C: 0}, {B: 0, D: 0})) == {B}


def test_of_several_at_two_failures_none_is_refused_and_of_three_all() -> None:
    book = failures({A: 0, B: 0}, {A: 0, B: 0})
    assert poisoned(book) == set()
    assert poisoned(failures({A: 0, B: 0}, {A: 0, B: 3})) == {A}
    assert poisoned(failures({A: 0, B: 0}, {A: 1, B: 3})) == set()
    book.failed("w7/1", [(A, 0), (C, 0)], now=3.0)
    assert poisoned(book) == {A}
    assert poisoned(failures({A: 0, B: 0}, {A: 0, B: 0}, {A: 0, B: 0})) == {A, B}


def test_progress_is_an_alibi() -> None:
    assert poisoned(failures({A: 900}, {A: 0})) == {A}
    assert poisoned(failures({A: 900}, {A: 1})) == set()
    assert poisoned(failures({A: 900}, {A: ALIBI_TOKENS - 1}, {A: 1})) == {A}
    book = failures({A: 0}, {A: ALIBI_TOKENS})
    assert poisoned(book) == set()
    book.failed("w7/1", [(A, 0)], now=3.0)
    assert poisoned(book) == {A}, "one failure was left to its charge"


def test_a_good_end_is_an_alibi_and_so_is_time() -> None:
    book = failures({A: 0, B: 0})
    book.clear(A)
    book.clear(C)
    book.failed("w7/1", [(A, 0)], now=2.0)
    book.failed("w8/1", [(B, 0)], now=SUSPECTED_SECONDS + 1.0)
    assert poisoned(book, SUSPECTED_SECONDS + 1.0) == set()


def test_one_failure_told_twice_is_one() -> None:
    book = PoisonBook()
    for _ in range(3):
        book.failed("w0/1", [(A, 0)], now=0.0)
    assert poisoned(book) == set()


def test_the_sentence_ends() -> None:
    book = failures({A: 0}, {A: 0})
    assert poisoned(book, POISONED_SECONDS) == {A}
    assert poisoned(book, POISONED_SECONDS + 1.0) == set()
    assert not book.has_poisoned


def test_who_came_in_a_silence_is_blamed_when_a_newer_process_shows_that_it_was_death() -> None:
    book = failures({A: 0, B: 0})
    book.came_late(A, "w5", 7, now=1.0)
    book.came_late(C, "w6", 7, now=1.0)
    book.came_late(D, "w7", 7, now=1.0)
    assert poisoned(book) == set()
    book.heard_of("w5", 8, now=2.0)
    book.heard_of("w6", 7, now=2.0)  # it lives
    book.heard_of("w6", 8, now=3.0)
    book.heard_of("w7", 8, now=1.0 + SUSPECTED_SECONDS)  # nobody cares any more
    book.check()
    assert poisoned(book) == {A}
    book.failed("w8/1", [(C, 0), (D, 0)], now=4.0)
    assert poisoned(book) == {A}


def test_memory_is_bounded() -> None:
    book = PoisonBook()
    for index in range(MOST_REMEMBERED + 50):
        for failure in ("x", "y"):
            book.failed(failure, [(b"%d" % index, 0)], now=0.0)
    book.check()
    book.failed("z", [(b"s%d" % index, 0) for index in range(MOST_REMEMBERED + 50)], now=0.0)
    book.check()


def test_a_repetition_has_the_same_fingerprint_and_nothing_else_has() -> None:
    sampling = SamplingParams(max_tokens=5, temperature=1.0, seed=1)
    whose = {"namespace": "n", "tenant": "t"}
    first = fingerprint(b"abcd", sampling, **whose)
    assert first == fingerprint(b"abcd", replace(sampling, seed=2), **whose)
    others = [
        fingerprint(b"abce", sampling, **whose),
        fingerprint(b"abcd", replace(sampling, max_tokens=6), **whose),
        fingerprint(b"abcd", replace(sampling, stop_token_ids=(1,)), **whose),
        fingerprint(b"abcd", sampling, namespace="", tenant="t"),
        fingerprint(b"abcd", sampling, namespace="n", tenant=""),
    ]
    assert len({first, *others}) == 6


# With links

POISON = pack_tokens(list(range(7000, 7064)))


class Victim(FakeWorker):
    """Ends for good, as killed, when a step would compute the poison."""

    fatal_position = 0
    killed: list[str]

    def _compute(self) -> pb.StepOutput:
        for running in self.running.values():
            if running.prompt == POISON and running.position >= self.fatal_position:
                self.faults.silent = True  # Nothing of this step leaves.
                self.killed.append(self.spec.worker_id)
                self._dying = asyncio.create_task(self.stop())
                return pb.StepOutput()
        return super()._compute()


def victims(count: int, *, fatal_position: int = 0) -> tuple[list[Victim], list[str]]:
    workers, killed = [Victim(f"w{i}") for i in range(count)], list[str]()
    for worker in workers:
        worker.fatal_position, worker.killed = fatal_position, killed
        worker.faults.mangle = lambda step: step if step.outputs or not step.step_seconds else None
    return workers, killed


async def begun_company(dispatcher: Dispatcher) -> list[asyncio.Task[list[Delta]]]:
    """Forty harmless streams, half of them well under way; each task holds one to its tokens."""
    others = [
        dispatcher.start(generation_request(f"q{i}", seed=i, max_tokens=150)) for i in range(40)
    ]
    checks = [asyncio.create_task(assert_exact(generation)) for generation in others]
    await until(lambda: all(generation.num_output_tokens > 3 for generation in others[:20]))
    return checks


@pytest.mark.parametrize("fatal_position", [0, 5])
async def test_a_poisoned_request_costs_two_workers_and_no_other_request(
    fatal_position: int,
) -> None:
    workers, killed = victims(4, fatal_position=fatal_position)
    async with cluster(*workers) as dispatcher:
        checks = await begun_company(dispatcher)
        poison = generation_request("poison", tokens=POISON, max_tokens=30)
        with pytest.raises(PoisonedRequest):
            await collect(dispatcher.start(poison))
        await asyncio.gather(*checks)
        assert len(killed) == 2
        with pytest.raises(PoisonedRequest):
            dispatcher.start(replace(poison, request_id="again"))
        await assert_exact(dispatcher.start(generation_request("other")))
        assert num_ready(dispatcher) == 2
        assert dispatcher.attempts.outcomes["poisoned_request"] == 1
        dispatcher.attempts.suspects.book.check()


async def test_choices_of_a_poisoned_prompt_are_tried_one_at_a_time() -> None:
    workers, killed = victims(5)
    first, *others = workers
    async with cluster(first) as dispatcher:
        first.faults.paused = True
        poison = [
            dispatcher.start(generation_request(f"p{i}", seed=i, tokens=POISON)) for i in range(4)
        ]
        for worker in others:
            dispatcher.membership.add(await worker.start())
        await until(lambda: num_ready(dispatcher) == 5)
        first.faults.paused = False
        for generation in poison:
            with pytest.raises(PoisonedRequest):
                await collect(generation)
        assert len(killed) == 2
        for worker in others:
            await worker.stop()


async def test_who_comes_to_a_worker_that_is_silent_already_has_not_silenced_it() -> None:
    """As when a network breaks: two workers stop speaking, one is noticed before the other."""
    workers = [FakeWorker(f"w{i}") for i in range(4)]
    async with cluster(*workers, silence_seconds=1.0) as dispatcher:
        requests = [
            generation_request(f"q{i}", tokens=pack_tokens([i] * 20), max_tokens=600)
            for i in range(4)
        ]
        generations = [dispatcher.start(request) for request in requests]
        tasks = [asyncio.create_task(assert_exact(each)) for each in generations]
        await until(lambda: all(each.num_output_tokens for each in generations))
        workers[0].faults.silent = True
        await asyncio.sleep(0.2)
        workers[1].faults.silent = True
        await until(lambda: generations[0].num_failures == 2)
        assert "q0" in {submit.request_id for submit in workers[1].submits}
        await asyncio.gather(*tasks)
        assert not dispatcher.attempts.suspects.book.has_poisoned


async def test_who_came_to_a_silent_worker_that_died_of_it_is_found_out_when_that_is_back() -> None:
    """Nothing is heard of its end: its link is silent, and then it is a new process."""
    silent, killed = FakeWorker("w0", epoch=1), list[str]()
    victim = Victim("w1")
    victim.killed = killed
    async with cluster(silent, silence_seconds=1.0, takeover_seconds=20.0) as dispatcher:
        silent.faults.silent = True
        await asyncio.sleep(0.7)
        generation = dispatcher.start(generation_request("poison", tokens=POISON, max_tokens=30))
        dispatcher.membership.add(await victim.start())
        await until(lambda: len(killed) == 1 and generation.session is None)
        assert [len(worker.submits) for worker in (silent, victim)] == [1, 1]
        port = int(silent.address.rpartition(":")[2])
        await silent.stop()
        again = FakeWorker("w0", epoch=2)
        await again.start(port=port)
        with pytest.raises(PoisonedRequest):
            await collect(generation)
        assert not again.submits
        await again.stop()


class Raiser(FakeWorker):
    """Its engine raises at each step whose batch has the poison: all of the batch end with it."""

    num_failed_steps = 0

    def _compute(self) -> pb.StepOutput:
        has_poison = any(running.prompt == POISON for running in self.running.values())
        self.faults.engine_error = "boom" if has_poison else ""
        self.num_failed_steps += has_poison
        return super()._compute()


async def test_a_request_on_which_engines_fail_is_refused_and_takes_nobody_with_it() -> None:
    workers = [Raiser(f"w{i}") for i in range(4)]
    async with cluster(*workers) as dispatcher:
        checks = await begun_company(dispatcher)
        poison = generation_request("poison", tokens=POISON, max_tokens=30)
        with pytest.raises(WorkerFailed, match="boom"):
            await collect(dispatcher.start(poison))
        with pytest.raises(PoisonedRequest):
            dispatcher.start(replace(poison, request_id="again"))
        await asyncio.gather(*checks)
        assert sum(worker.num_failed_steps for worker in workers) == 2


async def test_a_drained_worker_leaves_no_suspects() -> None:
    leaving, other = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(leaving, other) as dispatcher:
        generation = dispatcher.start(generation_request(max_tokens=200))
        await until(lambda: generation.num_output_tokens > 2)
        dispatcher.drain_worker("w0")
        leaving.break_streams()
        await assert_exact(generation)
        assert not dispatcher.attempts.suspects.book.has_suspects
        assert (generation.attempt, generation.num_failures) == (2, 0)


async def test_suspects_wait_for_each_other_only_so_long() -> None:
    """The worker they come to computes nothing for a while: none of them waits for its turn."""
    dying, other = FakeWorker("w0"), FakeWorker("w1")
    async with cluster(dying, other) as dispatcher:
        dispatcher.drain_worker("w1")
        generations = [
            dispatcher.start(generation_request(f"q{i}", seed=i, max_tokens=100)) for i in range(4)
        ]
        await until(lambda: all(g.num_output_tokens > 1 for g in generations))
        late = FakeWorker("w2")
        dispatcher.membership.add(await late.start())
        await until(lambda: num_ready(dispatcher) == 1 + 1)
        late.faults.paused = True
        await dying.stop()
        await until(lambda: len(late.submits) == 4)
        late.faults.paused = False
        await asyncio.gather(*map(assert_exact, generations))
        await late.stop()


def test_a_worker_s_pace_is_that_of_its_steps_but_for_its_rests() -> None:
    pace = StepPace()
    pace.stepped(now=1.0)
    assert pace.seconds == 0.0
    pace.stepped(now=1.5)
    assert pace.seconds == 0.5
    pace.rested()
    pace.stepped(now=9.0)
    pace.stepped(now=9.1)
    assert 0.1 < pace.seconds < 0.5
    for step in range(50):
        pace.stepped(now=9.2 + 0.1 * step)
    assert pace.seconds == pytest.approx(0.1, rel=0.01)


async def test_a_lone_worker_that_dies_fails_its_requests_as_ever() -> None:
    worker = FakeWorker()
    async with cluster(worker, takeover_seconds=0.2) as dispatcher:
        generation = dispatcher.start(generation_request(max_tokens=500))
        await until(lambda: generation.num_output_tokens > 1)
        await worker.stop()
        with pytest.raises(WorkerFailed):
            await collect(generation)
