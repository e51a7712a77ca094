"""The engine loop without a wire: what it does between, before, after and instead of steps."""

import queue
import threading
from dataclasses import replace

import numpy as np
import pytest
from worker_link_helpers import COST, VOCAB_SIZE, prompt_of, simulated

from preble.page_keys import unpack_tokens
from preble.types import FinishReason, Phase, RequestOutput, SamplingParams, WorkerRequest
from preble_worker import engine_loop, step_loop
from preble_worker.engine_loop import EngineLoop
from preble_worker.loop_messages import (
    Cancel,
    Drain,
    Drained,
    LoopReport,
    Settle,
    SnapshotTaken,
    Stop,
    Stopped,
    Submit,
    TakeSnapshot,
)
from preble_worker.scheduler import LocalScheduler
from preble_worker.simulated_engine import simulated_tokens

PATIENCE_SECONDS = 20.0


class GatedEngine:
    """Runs a step only when told to; `entered` has the batch it stands before."""

    def __init__(self, inner):
        self.inner = inner
        self.entered: queue.Queue = queue.Queue()
        self.gate: queue.Queue = queue.Queue()

    def run(self, batch):
        self.entered.put(batch)
        order = self.gate.get(timeout=PATIENCE_SECONDS)
        if isinstance(order, Exception):
            raise order
        return self.inner.run(batch)


class Bench:
    """A loop whose engine stands still until `step`, and whose deliveries queue up here."""

    def __init__(self, *, gated: bool = True, **options):
        loaded = simulated(**options)
        self.engine = GatedEngine(loaded.engine)
        self.scheduler = LocalScheduler(loaded.scheduler, epoch=7)
        self.deliveries: queue.Queue = queue.Queue()
        self.loop = EngineLoop(
            replace(loaded, engine=self.engine) if gated else loaded,
            self.scheduler,
            deliver=self.deliveries.put,
        )
        self.loop.start()

    def entered(self):
        """The batch before which the engine stands."""
        return self.engine.entered.get(timeout=PATIENCE_SECONDS)

    def step(self, order=None):
        self.engine.gate.put(order)

    def next(self):
        return self.deliveries.get(timeout=PATIENCE_SECONDS)

    def next_with(self, condition):
        while not condition(found := self.next()):
            pass
        return found

    def next_step(self) -> LoopReport:
        return self.next_with(lambda d: isinstance(d, LoopReport) and d.step_seconds > 0)

    def ends(self, request_id: str) -> RequestOutput:
        """The report of the request's end."""
        found = self.next_with(
            lambda d: (
                isinstance(d, LoopReport)
                and any(o.request_id == request_id and o.finish_reason for o in d.others)
            )
        )
        return next(o for o in found.others if o.request_id == request_id)

    def close(self):
        self.loop.post(Stop())
        for _ in range(100):
            self.engine.gate.put(None)
        assert self.loop.join(PATIENCE_SECONDS)
        self.scheduler.check()


@pytest.fixture
def make_bench():
    benches: list[Bench] = []

    def make(**options) -> Bench:
        benches.append(Bench(**options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def request(request_id: str, prompt: bytes = prompt_of(40), **options) -> WorkerRequest:
    sampling = SamplingParams(max_tokens=options.pop("max_tokens", 4))
    return WorkerRequest(request_id=request_id, tokens=prompt, sampling=sampling, **options)


def test_tokens_are_the_oracles_and_every_step_is_reported_once(make_bench):
    bench = make_bench(gated=False)
    bench.loop.post(Submit(request("a", max_tokens=6)))
    reports = [bench.next_step() for _ in range(6)]
    tokens = [unpack_tokens(o.tokens) for r in reports for o in (*r.others, *r.decoded)]
    assert (
        np.concatenate(tokens).tolist()
        == simulated_tokens(prompt_of(40), 0, 6, VOCAB_SIZE).tolist()
    )
    assert [r.step for r in reports] == [1, 2, 3, 4, 5, 6]
    assert [r.phase for r in reports] == [Phase.COMPUTING] * 5 + [Phase.IDLE]
    assert all(r.predicted_step_seconds > 0 and r.next_step_seconds == 0 for r in reports)
    assert reports[-1].others[-1].finish_reason is FinishReason.LENGTH


def test_a_request_cancelled_during_a_step_is_in_no_later_one(make_bench):
    bench = make_bench()
    other = prompt_of(40, seed=1)
    bench.loop.post(
        Submit(request("a", max_tokens=100)), Submit(request("b", other, max_tokens=100))
    )
    assert len(bench.entered().slots) == 2
    bench.step()
    assert len(bench.entered().slots) == 2
    bench.loop.post(Cancel("a"))
    bench.step()
    assert len(bench.entered().slots) == 1
    bench.step()
    report = bench.next_with(lambda d: d.step == 3)
    assert [(o.request_id, o.finish_reason) for o in report.others] == [
        ("a", FinishReason.CANCELLED)
    ]
    assert report.load.num_running == 1


def test_an_idle_loop_wakes_at_once_and_beats(make_bench, monkeypatch):
    monkeypatch.setattr(step_loop, "HEARTBEAT_SECONDS", 0.02)
    bench = make_bench(gated=False)
    beats = [bench.next() for _ in range(3)]
    assert all(b == beats[0] for b in beats)
    assert (beats[0].step, beats[0].phase, beats[0].step_seconds) == (0, Phase.IDLE, 0.0)
    monkeypatch.setattr(step_loop, "HEARTBEAT_SECONDS", 1e6)
    bench.loop.post(Submit(request("a", max_tokens=1)))
    assert bench.ends("a").finish_reason is FinishReason.LENGTH


def test_a_long_step_is_announced_before_it_runs(make_bench):
    bench = make_bench(cost=replace(COST, fixed=1.5))
    bench.loop.post(Submit(request("a")))
    bench.entered()
    notice = bench.next_with(lambda d: d.next_step_seconds > 0)
    assert notice.next_step_seconds == pytest.approx(1.5, rel=0.01)
    assert (notice.phase, notice.step_seconds) == (Phase.COMPUTING, 0.0)
    assert not notice.others
    assert notice.load.num_running == 1


def test_a_device_slower_than_its_cost_model_is_believed_by_its_pace(make_bench, monkeypatch):
    monkeypatch.setattr(step_loop, "LONG_STEP_SECONDS", 0.05)
    slow = threading.Event()
    bench = make_bench(gated=False, sleep=lambda _: slow.wait(0.1), cost=replace(COST, fixed=0.01))
    bench.loop.post(Submit(request("a", max_tokens=6)))
    notice = bench.next_with(lambda d: d.next_step_seconds > 0)
    assert notice.next_step_seconds > 0.05


def test_a_failed_step_ends_its_requests_and_no_others(make_bench):
    bench = make_bench()
    bench.loop.post(Submit(request("a")))
    bench.entered()
    bench.loop.post(Submit(request("b", prompt_of(30, seed=2), max_tokens=1)))
    bench.step(RuntimeError("out of memory"))
    failed = bench.ends("a")
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.error == "the worker's engine failed (RuntimeError)"
    bench.entered()
    bench.step()
    assert bench.ends("b").finish_reason is FinishReason.LENGTH


def test_failures_in_a_row_end_the_loop_and_a_success_between_resets(make_bench):
    bench = make_bench()
    orders = [OSError(), OSError(), None, OSError(), OSError(), OSError()]
    for i, order in enumerate(orders):
        bench.loop.post(Submit(request(f"r{i}", max_tokens=1)))
        bench.entered()
        bench.step(order)
        bench.ends(f"r{i}")
    stopped = bench.next_with(lambda d: isinstance(d, Stopped))
    assert "failed 3 steps in a row" in str(stopped.failure)
    assert bench.loop.join(PATIENCE_SECONDS)


def test_a_broken_scheduler_ends_the_loop_with_a_failure(make_bench, monkeypatch):
    bench = make_bench()
    monkeypatch.setattr(bench.scheduler, "schedule", lambda *, now: 1 / 0)
    bench.loop.post(Submit(request("a")))
    stopped = bench.next_with(lambda d: isinstance(d, Stopped))
    assert "ZeroDivisionError" in str(stopped.failure)


def test_draining_ends_what_runs_and_turns_the_rest_away(make_bench):
    bench = make_bench()
    bench.loop.post(Submit(request("a", max_tokens=2)))
    bench.entered()
    late = request("late", num_delivered=3)
    bench.loop.post(Drain(), Submit(late))
    bench.step()
    bench.entered()
    bench.step()
    last = bench.next_with(lambda d: isinstance(d, LoopReport) and d.step == 2)
    assert last.phase is Phase.DRAINING
    away, ended = last.others
    assert (away.request_id, away.finish_reason, away.position) == ("late", FinishReason.ERROR, 3)
    assert away.error == "the worker is draining"
    assert (ended.request_id, ended.finish_reason) == ("a", FinishReason.LENGTH)
    assert isinstance(bench.next(), Drained)


def test_an_idle_worker_is_drained_at_once(make_bench):
    bench = make_bench()
    bench.loop.post(Drain())
    assert bench.next_with(lambda d: isinstance(d, LoopReport)).phase is Phase.DRAINING
    assert bench.next_with(lambda d: isinstance(d, Drained))


def test_a_snapshot_stands_between_the_batches_it_divides(make_bench):
    bench = make_bench(gated=False, num_pages=20)
    for i in range(30):
        bench.loop.post(Submit(request(f"r{i}", prompt_of(33 + 5 * i, seed=i % 7), max_tokens=3)))
        bench.loop.post(TakeSnapshot(i))
        if i % 3 == 0:
            bench.loop.post(Cancel(f"r{i}"))
    seq, num_snapshots = 0, 0
    while num_snapshots < 30:
        match bench.next():
            case LoopReport(cache=cache) if cache is not None:
                seq += 1
                assert (cache.epoch, cache.seq) == (7, seq)
            case SnapshotTaken(link, snapshot):
                assert (link, snapshot.seq) == (num_snapshots, seq)
                num_snapshots += 1


def test_what_never_reached_the_scheduler_is_reported_in_order(make_bench):
    bench = make_bench()
    refused = RequestOutput(
        request_id="x", attempt=1, position=0, finish_reason=FinishReason.REFUSED, error="no"
    )
    bench.loop.post(Settle(refused))
    assert bench.ends("x") == refused


def test_a_deadline_passes_while_nothing_can_be_scheduled(make_bench):
    bench = make_bench(gated=False, sleep=threading.Event().wait, cost=replace(COST, fixed=0.02))
    now = engine_loop.time.monotonic()
    bench.loop.post(Submit(request("a", max_tokens=10_000 // 4, deadline_at=now + 0.1)))
    ended = bench.ends("a")
    assert ended.finish_reason is FinishReason.DEADLINE


def test_commands_from_many_threads_all_arrive(make_bench):
    bench = make_bench(gated=False, max_sequences=16)
    prompt = prompt_of(20)

    def submit(thread: int) -> None:
        for i in range(25):
            bench.loop.post(Submit(request(f"{thread}/{i}", prompt, max_tokens=2)))

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    ended: set[str] = set()
    while len(ended) < 100:
        report = bench.next()
        ends = [o.request_id for o in report.others if o.finish_reason]
        assert not ended & set(ends)
        ended.update(ends)
    for thread in threads:
        thread.join()
