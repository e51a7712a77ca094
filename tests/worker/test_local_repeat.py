"""Several equal decode steps at once leave a scheduler exactly as one after another do."""

import random
from dataclasses import asdict, dataclass, field, replace

import pytest
from worker_helpers import CacheView, make_config, make_request

from preble.types import FinishReason, WorkerRequest
from preble_worker.config import SchedulerConfig
from preble_worker.outputs import StepOutputs
from preble_worker.policies import POLICY_NAMES
from preble_worker.scheduler import LocalScheduler
from preble_worker.simulated_tokens import TokenSource, simulated_tokens

VOCAB = 1000


@dataclass
class Seen:
    """Everything that came out, by request."""

    ends: dict[str, FinishReason] = field(default_factory=dict)
    next_position: dict[str, int] = field(default_factory=dict)
    view: CacheView = field(default_factory=CacheView)


class Turner:
    """Turns a scheduler `num_steps` at a time, each step a second; `at_once` where it may."""

    def __init__(self, config: SchedulerConfig, *, at_once: bool) -> None:
        self.scheduler = LocalScheduler(config, epoch=1)
        self.tokens = TokenSource(VOCAB)
        self.at_once = at_once
        self.now = 0.0
        self.num_repeated = 0
        self.seen = Seen()

    def turn(self, num_steps: int) -> None:
        while num_steps:
            batch = self.scheduler.schedule(now=self.now)
            if batch is None:
                self.take(self.scheduler.flush())
                self.now += num_steps
                return
            most = self.scheduler.num_alike(batch) if self.at_once else 1
            count = min(most, num_steps)
            tokens = self.tokens.draw(batch, num_steps=count)
            if count > 1:
                self.scheduler.repeat(batch, tokens[:-1])
                self.num_repeated += count - 1
            self.now += count
            num_steps -= count
            self.take(self.scheduler.complete(batch, tokens[-1], now=self.now))

    def take(self, outputs: StepOutputs) -> None:
        for output in outputs.outputs:
            self.seen.next_position[output.request_id] = output.position + len(output.tokens) // 4
            if output.finish_reason is not None:
                self.seen.ends[output.request_id] = output.finish_reason
        if outputs.cache is not None:
            self.seen.view.apply(outputs.cache)
            assert self.seen.view.key_sum == self.scheduler.load().tree_key_sum


def random_request(rng: random.Random, index: int) -> WorkerRequest:
    prefix = [rng.randrange(3)] * rng.randrange(1, 24)
    prompt = prefix + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 20))]
    ignore_eos = rng.random() < 0.97
    request = make_request(
        f"r{index}", prompt, rng.randrange(1, 60), seed=index, ignore_eos=ignore_eos
    )
    penalty = 0.5 * (index % 3 == 0)
    return replace(request, sampling=replace(request.sampling, presence_penalty=penalty))


@pytest.mark.parametrize(
    ("policy", "seed", "num_pages"),
    [
        *(("preble_groups", seed, num_pages) for seed in range(3) for num_pages in (30, 60)),
        *((policy, 3, 30) for policy in POLICY_NAMES),
    ],
)
def test_at_once_is_as_one_by_one(policy: str, seed: int, num_pages: int) -> None:
    rng = random.Random(seed)
    config = make_config(num_pages=num_pages, eos_token_ids=(7,), max_sequences=6, policy=policy)
    turners = [Turner(config, at_once=at_once) for at_once in (False, True)]
    for index in range(40):
        request = random_request(rng, index)
        num_steps = rng.choice([0, 1, 3, 10, 40])
        cancelled = f"r{rng.randrange(index + 1)}" if rng.random() < 0.2 else ""
        for turner in turners:
            turner.scheduler.add(request, now=turner.now)
            turner.turn(num_steps)
            turner.scheduler.cancel(cancelled, now=turner.now)
        assert_equal(*turners)
    for turner in turners:
        turner.turn(3000)
        assert not turner.scheduler.num_live
    assert_equal(*turners)
    assert turners[1].num_repeated > 30


def assert_equal(single: Turner, many: Turner) -> None:
    for turner in (single, many):
        turner.take(turner.scheduler.flush())
        turner.scheduler.check()
    assert single.now == many.now
    assert asdict(single.scheduler.load()) == asdict(many.scheduler.load())
    assert single.seen.ends == many.seen.ends
    assert single.seen.next_position.items() >= many.seen.next_position.items()
    assert single.seen.view.pages == many.seen.view.pages
    assert single.scheduler.tables.penalties == many.scheduler.tables.penalties
    assert set(single.scheduler.snapshot().paths) == set(many.scheduler.snapshot().paths)


def test_a_long_run_continues_with_the_right_tokens() -> None:
    """More steps than fit a page and the array of newest tokens, then one by one to the end."""
    turner = Turner(make_config(), at_once=True)
    request = make_request("a", range(5), 100, seed=3, ignore_eos=True)
    turner.scheduler.add(request, now=0.0)
    turner.turn(1 + 70)
    turner.at_once = False
    turner.turn(30)
    assert turner.num_repeated == 69
    assert turner.seen.ends == {"a": FinishReason.LENGTH}
    answer = simulated_tokens(request.tokens, 3, 100, VOCAB)
    again = make_request("b", [*range(5), *answer.tolist()], 1)
    turner.scheduler.add(again, now=turner.now)
    turner.turn(1)
    load = turner.scheduler.load()
    assert load.cached_tokens_total == (5 + 100 - 1) // 4 * 4


def test_only_what_is_certain_is_alike() -> None:
    scheduler = LocalScheduler(make_config(eos_token_ids=(7,)), epoch=1)
    tokens = TokenSource(VOCAB)

    def alike(request: WorkerRequest) -> int:
        scheduler.add(request, now=0.0)
        batch = scheduler.schedule(now=0.0)
        assert batch is not None and scheduler.num_alike(batch) == 1, "a prefill is in it"
        scheduler.complete(batch, tokens.draw(batch)[0], now=0.0)
        batch = scheduler.schedule(now=0.0)
        assert batch is not None
        count = scheduler.num_alike(batch)
        scheduler.complete(batch, tokens.draw(batch)[0], now=0.0)
        scheduler.cancel(request.request_id, now=0.0)
        return count

    assert alike(make_request("certain", range(5), 20, ignore_eos=True)) == 19
    assert alike(make_request("eos", range(5), 20)) == 1
    stopping = make_request("stop", range(5), 20, ignore_eos=True, stop_token_ids=(9,))
    assert alike(stopping) == 1
    late = make_request("deadline", range(5), 20, ignore_eos=True, deadline_at=9.0)
    assert alike(late) == 1
