"""Whatever the scheduler does, each request gets the tokens that the model alone would draw.

The pretend engine reads contexts back through the page tables, so that a page shared wrongly,
reused too early or lost in a preemption changes what comes out.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from worker_helpers import Worker, expected_tokens, make_request

from preble.types import FinishReason, WorkerRequest
from preble_worker.batch import Batch
from preble_worker.policies import POLICY_NAMES

DONE = (FinishReason.STOP, FinishReason.LENGTH)

scarcity = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(POLICY_NAMES),
        "prefix_caching": st.booleans(),
        "max_batch_tokens": st.sampled_from([1, 3, 8, 64]),
        "max_sequences": st.sampled_from([1, 2, 5, 16]),
        "num_pages": st.sampled_from([16, 20, 40, 200]),
        "page_tokens": st.sampled_from([1, 4]),
        "age_escape_seconds": st.sampled_from([0.0, 10.0]),
        "eos_token_ids": st.sampled_from([(), (3, 4)]),
        "context_tokens": st.just(64),
    }
)


def random_requests(rng: random.Random, count: int) -> list[WorkerRequest]:
    """Prompts out of few building blocks, so that they share much and branch anywhere."""
    requests = []
    for number in range(count):
        blocks = [[rng.randrange(3)] * rng.choice([1, 4, 8]) for _ in range(rng.randrange(1, 5))]
        prompt = [token for block in blocks for token in block]
        requests.append(
            make_request(
                f"r{number}",
                prompt,
                max_tokens=rng.randrange(1, 20),
                seed=rng.randrange(2),
                priority=rng.choice([0, 0, 0, 1]),
                namespace=rng.choice(["", "", "tenant"]),
                ignore_eos=rng.random() < 0.3,
                stop_token_ids=rng.choice([(), (), (7,)]),
            )
        )
    return requests


@given(options=scarcity, seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_outputs_do_not_depend_on_scheduling(options: dict[str, object], seed: int) -> None:
    rng = random.Random(seed)
    worker = Worker(**options)  # type: ignore[arg-type]
    for request in random_requests(rng, 14):
        worker.add(request)
        for _ in range(rng.choice([0, 0, 1, 3])):
            worker.step()
    worker.run()
    for key, received in worker.received.items():
        if received.finish_reason is FinishReason.REFUSED:
            assert worker.config.num_pages * worker.config.page_tokens < 64
            continue
        assert received.finish_reason in DONE
        assert received.tokens == expected_tokens(worker.requests[key], worker.config)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_long_crowded_run_stays_exact(policy: str) -> None:
    rng = random.Random(7)
    worker = Worker(policy=policy, num_pages=24, max_batch_tokens=24, max_sequences=12)
    for request in random_requests(rng, 150):
        worker.add(request)
        if rng.random() < 0.5:
            worker.step()
    worker.run()
    worker.assert_complete()
    load = worker.scheduler.load()
    assert load.preemptions_total > 0 and load.cached_tokens_total > 0
    cached = sum(received.cached_tokens or 0 for received in worker.received.values())
    assert cached == load.cached_tokens_total


class SchedulerMachine(RuleBasedStateMachine):
    """Everything that can happen to a scheduler, at any moment, a batch under way or not."""

    @initialize(options=scarcity)
    def start(self, options: dict[str, object]) -> None:
        self.worker = Worker(**options)  # type: ignore[arg-type]
        self.under_way: Batch | None = None
        self.attempts: dict[str, int] = {}

    @rule(seed=st.integers(0, 10**6), deadline=st.sampled_from([None, None, 0.0, 3.0, 9.0]))
    def add(self, seed: int, deadline: float | None) -> None:
        request = random_requests(random.Random(seed), 1)[0]
        name = f"r{len(self.attempts)}"
        self.attempts[name] = 1
        deadline_at = None if deadline is None else self.worker.now + deadline
        self._add(request, request_id=name, deadline_at=deadline_at)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def add_later_attempt(self, data: st.DataObject) -> None:
        """As a router does that has lost track of the first, with the output it had seen."""
        name = data.draw(st.sampled_from(sorted(self.attempts)))
        before = self.worker.requests[name, self.attempts[name]]
        seen = self.worker.output(name, self.attempts[name])
        self.attempts[name] += 1
        prompt = before.tokens + b"".join(token.to_bytes(4, "little") for token in seen.tokens)
        num_delivered = before.num_delivered + len(seen.tokens)
        self._add(
            before,
            attempt=self.attempts[name],
            tokens=prompt,
            num_delivered=num_delivered,
            deadline_at=None,
        )

    def _add(self, request: WorkerRequest, **changes: object) -> None:
        fields = {name: getattr(request, name) for name in WorkerRequest.__slots__}
        self.worker.add(WorkerRequest(**{**fields, **changes}))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.attempts)))
        self.worker.scheduler.cancel(name, now=self.worker.now)

    @precondition(lambda self: self.under_way is None)
    @rule()
    def schedule(self) -> None:
        self.under_way = self.worker.schedule()
        if self.under_way is None:
            assert self.worker.scheduler.num_live == 0

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def complete(self) -> None:
        assert self.under_way is not None
        self.worker.complete(self.under_way)
        self.under_way = None

    @precondition(lambda self: self.under_way is None)
    @rule(count=st.integers(1, 8))
    def several_steps(self, count: int) -> None:
        for _ in range(count):
            self.worker.step()

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def fail(self) -> None:
        assert self.under_way is not None
        outputs = self.worker.scheduler.fail(self.under_way, error="No.", now=self.worker.now)
        self.worker.take(outputs)
        self.under_way = None

    @rule()
    def flush(self) -> None:
        self.worker.take(self.worker.scheduler.flush())

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "worker"):
            self.worker.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "worker"):
            return
        if self.under_way is not None:
            self.complete()
        self.worker.run()
        self.worker.check_after_flush()
        load = self.worker.scheduler.load()
        assert load.used_pages == load.waiting_prefill_tokens == load.decode_context_tokens == 0
        for key, received in self.worker.received.items():
            self._check_end(self.worker.requests[key], received.tokens, received.finish_reason)

    def _check_end(
        self, request: WorkerRequest, tokens: list[int], reason: FinishReason | None
    ) -> None:
        assert reason is not None, f"{request.request_id} never ended"
        if reason is FinishReason.REFUSED:
            assert not tokens
            return
        expected = expected_tokens(request, self.worker.config)
        assert tokens == expected[: len(tokens)]
        if reason in DONE:
            assert tokens == expected


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
