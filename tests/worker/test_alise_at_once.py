"""`alise` looks at many requests at once and keeps levels; held against one at a time, anew."""

import random
from dataclasses import replace

import numpy as np
import pytest
from local_policy_helpers import Job

from preble_worker.length_estimate import LengthEstimate
from preble_worker.policies import PolicyOptions
from preble_worker.policies.alise import PROMOTION_STRETCH, Alise


class Plain:
    """The same rules, of one request after the other, with nothing kept but its standing."""

    def __init__(self) -> None:
        self.policy = Alise(PolicyOptions())

    def order(self, waiting: list[Job], now: float) -> list[Job]:
        return sorted(waiting, key=lambda job: (self.level(job, now), job.arrived_at))

    def dispensable(self, running: list[Job]) -> list[Job]:
        return sorted(
            running, key=lambda job: (-self.level(job), -self.policy.standing(job).remaining)
        )

    def level(self, job: Job, now: float | None = None) -> int:
        standing = self.policy.standing(job)
        waited = job.waited_seconds + (0.0 if now is None else now - job.waiting_since)
        return max(standing.level - int(waited / (PROMOTION_STRETCH * standing.total)), 0)


@pytest.mark.parametrize("seed", range(20))
def test_orders_are_those_of_one_at_a_time(seed: int) -> None:
    rng = random.Random(seed)
    policy, plain = Alise(PolicyOptions()), Plain()
    waiting: list[tuple[Job, Job]] = []
    running: list[tuple[Job, Job]] = []
    now, num_moved = 0.0, 0
    for _ in range(150):
        now += rng.choice((0.02, 0.02, 0.5, 20.0))
        for _ in range(rng.randrange(3)):
            predicted = rng.choice((None, rng.randint(1, 400), rng.randint(1, 40)))
            job = Job(
                num_tokens=rng.randint(1, 3000),
                arrived_at=now,
                waiting_since=now,
                max_tokens=rng.choice((1, 20, 500, 4000)),
                predicted_output_tokens=predicted,
            )
            waiting.append((job, replace(job)))
        policy.observe([a for a, _ in waiting], [a for a, _ in running], now=now)
        for _, twin in waiting:
            plain.policy.standing(twin)
        order = policy.order([a for a, _ in waiting], now=now)
        others = plain.order([b for _, b in waiting], now)
        assert [a.arrived_at for a in order] == [b.arrived_at for b in others]
        num_moved += order != [a for a, _ in waiting]

        spared = policy.dispensable([a for a, _ in running], now=now)
        twins = dict(running)
        assert [twins[a] for a in spared] == plain.dispensable([b for _, b in running])
        for a, b in running:
            assert policy.standing(a).remaining == plain.policy.standing(b).remaining
        for a, b in waiting:
            for c, d in running:
                outranks = plain.level(b, now) < plain.level(d) and (
                    plain.policy.standing(b).remaining < 0.7 * plain.policy.standing(d).remaining
                )
                assert policy.outranks(a, c, now=now) == outranks

        for a, b in running[: rng.randrange(3)]:
            if rng.random() < 0.5:  # Preempted.
                for job in (a, b):
                    job.runs, job.waiting_since = False, now
                waiting.append((a, b))
                waiting.sort(key=lambda pair: pair[0].arrived_at)
            else:
                policy.ended(a, finished=True)
                plain.policy.ended(b, finished=True)
            running.remove((a, b))
        for pair in rng.sample(waiting, min(len(waiting), rng.randrange(3))):
            waiting.remove(pair)
            running.append(pair)
            for job in pair:
                job.waited_seconds += now - job.waiting_since
                job.runs = True
            policy.started(pair[0])
        for pair in running:
            num_new = rng.randrange(40)
            for job in pair:
                job.num_generated += num_new
                job.num_tokens += num_new
    assert num_moved > 20, "levels mattered"


def test_expected_lengths_of_many_are_those_of_each() -> None:
    estimate, rng = LengthEstimate(), random.Random(5)
    for num_learnt in (0, 1, 300):
        for _ in range(num_learnt):
            estimate.learn(rng.randint(1, 300), rng.randint(1, 2000))
        predicted = [float(rng.randint(1, 500)) for _ in range(400)]
        generated = [float(rng.choice((0, 1, rng.randint(0, 9000)))) for _ in range(400)]
        at_once = estimate.expected_of(np.array(predicted), np.array(generated))
        each = [estimate.expected(p, int(g)) for p, g in zip(predicted, generated, strict=True)]
        assert at_once.tolist() == each
