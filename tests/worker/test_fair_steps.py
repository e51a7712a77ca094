"""dlpm through the scheduler, step by step: no work is held back, and who is due waits for none."""

import random
from itertools import count

import pytest
from fake_engine import StubEngine
from local_policy_helpers import Job
from worker_helpers import make_request

from preble.fair_share import SAVINGS_TOKENS
from preble_worker.batch import Batch
from preble_worker.config import SchedulerConfig
from preble_worker.policies import PolicyOptions
from preble_worker.policies.dlpm import QUANTUM_TOKENS, Dlpm
from preble_worker.scheduler import LocalScheduler


class Steps:
    """A worker with enough pages, whose prompts share nothing, and when first tokens came.

    Attributes:
        first_step: by request id.
    """

    def __init__(self, **options: object) -> None:
        fields = {"num_pages": 20_000, "max_sequences": 4, "max_batch_tokens": 256, **options}
        self.config = SchedulerConfig(policy="dlpm", **fields)  # type: ignore[arg-type]
        self.scheduler = LocalScheduler(self.config, epoch=1)
        self.number = 0
        self.first_step: dict[str, int] = {}
        self.arrived_in: dict[str, int] = {}
        self._ids = count()

    def ask(
        self,
        tenant: str,
        num_tokens: int,
        output_tokens: int,
        *,
        priority: int = 0,
        again: bool = False,
    ) -> str:
        """`again`: the prompt of the first one."""
        number = next(self._ids)
        request_id = f"{tenant}{number}"
        prompt = [0 if again else number % 30_000] * num_tokens
        self.arrived_in[request_id] = self.number
        self.scheduler.add(
            make_request(
                request_id,
                prompt,
                output_tokens,
                tenant=tenant,
                priority=priority,
                ignore_eos=True,
            ),
            now=0.02 * self.number,
        )
        return request_id

    def step(self) -> Batch:
        batch = self.scheduler.schedule(now=0.02 * self.number)
        assert batch is not None
        self.number += 1
        tokens = StubEngine().run(batch)
        outputs = self.scheduler.complete(batch, tokens, now=0.02 * self.number)
        for output in outputs.outputs:
            self.first_step.setdefault(output.request_id, self.number)
        return batch

    def steps_to_first(self, request_id: str) -> int:
        """1: in the first step that could compute it."""
        return self.first_step[request_id] - self.arrived_in[request_id]


def num_tokens(batch: Batch) -> int:
    return batch.num_decodes + len(batch.prefill_tokens)


def test_a_prompt_goes_before_the_rest_of_one_that_has_begun() -> None:
    """And the other one has all that is left of the step."""
    worker = Steps()
    long = worker.ask("greedy", 8000, 5)
    worker.ask("greedy", 8000, 5)
    for _ in range(4):
        worker.step()
    short = worker.ask("steady", 100, 20)
    assert num_tokens(worker.step()) == worker.config.max_batch_tokens
    assert worker.steps_to_first(short) == 1
    worker.scheduler.check()
    while long not in worker.first_step:
        worker.step()
    computed = -(-(8000 + 100) // (worker.config.max_batch_tokens - 1))
    assert worker.steps_to_first(long) <= computed + 1


def test_nobody_goes_before_a_begun_prompt_of_higher_priority() -> None:
    worker = Steps()
    long = worker.ask("greedy", 3000, 5, priority=1)
    worker.step()
    short = worker.ask("steady", 100, 20)
    while short not in worker.first_step:
        worker.step()
    assert worker.first_step[short] >= worker.first_step[long]


def test_a_tenant_goes_before_begun_prompts_for_no_more_than_is_fair() -> None:
    """What the other paid for and has not got does not count, nor more of it than one may save."""
    worker = Steps(max_sequences=8)
    long = worker.ask("greedy", 7000, 5)
    worker.step()
    asked = [worker.ask("flood", 400, 1) for _ in range(100)]
    while long not in worker.first_step:
        worker.step()
    computed = 400 * sum(request_id in worker.first_step for request_id in asked)
    assert SAVINGS_TOKENS - QUANTUM_TOKENS <= computed <= 7000 + QUANTUM_TOKENS


def test_a_place_is_taken_though_the_oldest_has_paid_for_what_it_has_not_got() -> None:
    worker = Steps(max_sequences=2)
    worker.ask("greedy", 300, 1)
    worker.step()
    worker.step()
    worker.ask("greedy", 5000, 5)
    worker.number += 1
    worker.ask("greedy", 300, 100, again=True)  # Is cached, so it starts first.
    worker.step()
    short = worker.ask("steady", 100, 20)
    worker.step()
    assert worker.steps_to_first(short) == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_step_is_left_unfilled_while_anybody_waits(seed: int) -> None:
    rng = random.Random(seed)
    worker = Steps(max_sequences=rng.randrange(2, 12))
    lengths = {tenant: rng.choice([20, 200, 2000]) for tenant in "abc"}
    rates = {tenant: rng.choice([0.0, 0.1, 1.0]) for tenant in "abc"}
    full = 0
    for _ in range(300):
        for tenant, length in lengths.items():
            if rng.random() < rates[tenant]:
                worker.ask(tenant, rng.randrange(1, length), rng.randrange(1, 30))
        if not worker.scheduler.num_live:
            worker.number += 1
            continue
        batch = worker.scheduler.schedule(now=0.02 * worker.number)
        assert batch is not None
        load = worker.scheduler.load()
        assert (
            num_tokens(batch) == worker.config.max_batch_tokens
            or load.num_running == worker.config.max_sequences
            or not load.num_waiting
        )
        full += load.num_waiting > 0
        worker.number += 1
        worker.scheduler.complete(batch, StubEngine().run(batch), now=0.02 * worker.number)
    worker.scheduler.check()
    assert full > 20 or max(rates.values()) < 1.0


@pytest.mark.parametrize("seed", range(6))
def test_who_asks_for_less_than_its_share_is_served_in_the_next_step(seed: int) -> None:
    """Whatever the other asks for; but for what it asked for itself in the same moment."""
    rng = random.Random(seed)
    worker = Steps(max_sequences=rng.choice([4, 8, 16]), max_batch_tokens=512)
    length, output = rng.choice([50, 400, 3000]), rng.choice([5, 40])
    steady: list[str] = []
    for _ in range(400):
        while worker.scheduler.load().num_waiting < 40:
            worker.ask("greedy", rng.randrange(1, length), rng.randrange(1, output + 1))
        if worker.number % 12 == 0 and worker.number > 60:  # The greedy one has had more by then.
            steady.append(worker.ask("steady", rng.randrange(20, 200), 4))
        worker.step()
    waited = sorted(worker.steps_to_first(request_id) for request_id in steady)
    assert waited[-1] <= 2 and sum(waited) <= 1.1 * len(waited)


def test_who_lost_its_place_does_not_pay_again() -> None:
    """For its prompt, or for output that it had."""
    policy = Dlpm(PolicyOptions())
    policy.observe([Job(tenant="other")], [], now=0.0)
    job = Job(num_tokens=1000, tenant="a")
    policy.started(job)
    job.runs, job.num_generated = True, 30
    policy.observe([Job(tenant="other", arrived_at=-1.0)], [job], now=1.0)
    paid = policy.credit("a")
    job.runs, job.num_tokens = False, 1030
    policy.started(job)
    assert policy.credit("a") == paid
