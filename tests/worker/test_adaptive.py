"""The policy `adaptive`: the choice against brute force, and requests in the hidden form."""

import random
from dataclasses import replace
from itertools import combinations
from math import inf

import pytest
from local_policy_helpers import Job as Request
from worker_helpers import Worker, make_request

from preble.cost import CostModel
from preble_worker.config import TierConfig
from preble_worker.kv_form import CompactForm, KvForm
from preble_worker.policies import PolicyOptions
from preble_worker.policies.adaptive import Adaptive, Prospect, Room, Runner
from preble_worker.policies.knapsack import (
    Budgets,
    Choice,
    Form,
    Job,
    choose,
    increments,
    value_of,
)
from preble_worker.policies.pace import Due, Pace, best_pace, most_in_time

FULL = Form(1.0, 0.0)
AT_EASE = {"pace": Pace(100_000, 1e-3), "tokens": 100_000}
"""All that wait are computed in time."""
HALF = (CompactForm(KvForm.HIDDEN, 32, 0.01 / 16),)


def random_jobs(rng: random.Random, most: int) -> list[Job]:
    """Few kinds of numbers, so that ties and misfits are frequent."""
    smaller = [Form(rng.choice([0.25, 0.5, 0.7]), rng.choice([0.0, 0.01, 0.1, 1.0]))]
    if rng.random() < 0.5:
        smaller.append(Form(0.8, rng.choice([0.0, 0.05])))
    jobs = []
    for _ in range(rng.randrange(1, most + 1)):
        forms = tuple(form for form in smaller if rng.random() < 0.8)
        worth = rng.choice([rng.random(), 100.0 * rng.random(), 1e-3])
        pages = rng.choice([1.0, 2.0, 3.0, 10.0, 50.0])
        tokens = rng.choice([0.0, 1.0, 10.0, 16.0 * pages])
        jobs.append(Job(worth, pages, (*forms, FULL), tokens=tokens))
    return jobs


def weight_of(choice: Choice, jobs: list[Job]) -> float:
    return sum(jobs[number].weight(form) for number, form in choice.items())


def optimum(jobs: list[Job], pages: float, tokens: float = inf) -> float:
    """By trying everything that could still be better than the best so far."""
    best = 0.0

    def search(number: int, value: float, left: float, tokens: float, at_most: float) -> None:
        nonlocal best
        best = max(best, value)
        if number == len(jobs) or value + at_most <= best:
            return
        job, rest = jobs[number], at_most - jobs[number].worth
        after = tokens - tokens_of(job, budget)
        for form in job.forms if after >= 0.0 else ():
            weight = job.weight(form)
            if weight <= left:
                search(number + 1, value + job.value(form), left - weight, after, rest)
        search(number + 1, value, left, tokens, rest)

    budget = tokens
    search(0, 0.0, pages, tokens, sum(job.worth for job in jobs))
    return best


def tokens_of(job: Job, budget: float) -> float:
    """A job longer than the budget takes it all."""
    return min(job.tokens, budget)


@pytest.mark.parametrize(("most", "rounds"), [(4, 1000), (8, 3000)])
def test_the_choice_is_worth_at_least_half_of_the_optimum(most: int, rounds: int) -> None:
    for seed in range(rounds):
        rng = random.Random(seed)
        jobs = random_jobs(rng, most)
        pages = rng.choice([1.0, 5.0, 10.0, 50.0, 80.0])
        choice = choose(jobs, pages=pages, count=len(jobs))
        assert weight_of(choice, jobs) <= pages
        assert 2.0 * value_of(choice, jobs) >= optimum(jobs, pages) - 1e-9, seed


@pytest.mark.parametrize(("most", "rounds"), [(4, 1000), (8, 3000)])
def test_with_two_budgets_it_is_worth_at_least_a_quarter(most: int, rounds: int) -> None:
    """And half where the tokens of all fit."""
    num_bound = 0
    for seed in range(rounds):
        rng = random.Random(seed)
        jobs = random_jobs(rng, most)
        pages = rng.choice([1.0, 5.0, 10.0, 50.0, 80.0])
        tokens = rng.choice([1.0, 12.0, 40.0, 200.0, 900.0])
        choice = choose(jobs, pages=pages, count=len(jobs), tokens=tokens)
        assert weight_of(choice, jobs) <= pages
        assert sum(tokens_of(jobs[number], tokens) for number in choice) <= tokens
        binds = sum(job.tokens for job in jobs) > tokens
        share = 4.0 if binds else 2.0
        assert share * value_of(choice, jobs) >= optimum(jobs, pages, tokens) - 1e-9, seed
        num_bound += binds
    assert rounds > num_bound > rounds // 3


def test_with_two_budgets_a_quarter_is_nearly_all_that_can_be_promised() -> None:
    jobs = [
        Job(0.51, 49.0, (FULL,), tokens=1.0),
        Job(0.54, 52.0, (FULL,), tokens=1.0),
        Job(0.99, 99.0, (FULL,), tokens=0.0),
        Job(1.0, 1.0, (FULL,), tokens=100.0),
    ]
    choice = choose(jobs, pages=100.0, count=4, tokens=100.0)
    ratio = value_of(choice, jobs) / optimum(jobs, 100.0, 100.0)
    assert 0.25 <= ratio < 0.28


def is_in_time(dues: list[Due], pace: Pace) -> bool:
    total = 0
    for due in dues:
        total += due.tokens
        if pace.seconds_until(total) > due.seconds:
            return False
    return True


def test_as_many_first_tokens_are_in_time_as_can_be() -> None:
    """Against every subset, in the order of its objectives, which is the best for any subset."""
    num_late = 0
    for seed in range(2000):
        rng = random.Random(seed)
        pace = Pace(rng.choice([1, 8, 64]), rng.choice([0.01, 0.1]), rng.choice([0, 0, 50]))
        dues = [
            Due(rng.choice([0.1, 0.5, 1.0]) * rng.random(), rng.choice([1, 5, 40, 200]), number)
            for number in range(rng.randrange(9))
        ]
        kept, left_out = most_in_time(dues, pace)
        assert sorted([*kept, *left_out]) == list(range(len(dues)))
        assert is_in_time([dues[number] for number in kept], pace)
        more = combinations(sorted(dues), min(len(kept) + 1, len(dues)))
        assert not left_out or not any(is_in_time(list(some), pace) for some in more), seed
        num_late += len(left_out)
    assert num_late > 1000


def test_steps_are_as_long_as_the_objective_allows() -> None:
    """A step of 1 ms and 0.1 ms for each token: the shorter the objective, the fewer tokens; and
    all that is possible where no objective can be met.
    """
    cost = CostModel(
        name="test",
        fixed=1e-3,
        per_prefill_token=1e-4,
        per_attention=0.0,
        per_decode=0.0,
        per_context_token=0.0,
    )

    def tokens(slo: float) -> int:
        return best_pace(cost, most=4096, decodes=0, context=0.0, slo=slo, ahead=0).tokens

    assert [tokens(slo) for slo in (0.05, 0.2, 1.0, 100.0)] == [64, 128, 256, 4096]
    assert best_pace(cost, most=5, decodes=0, context=0.0, slo=1.0, ahead=0).tokens == 5
    assert best_pace(cost, most=0, decodes=9, context=0.0, slo=1.0, ahead=0).tokens == 1


def test_increments_are_concave() -> None:
    for seed in range(500):
        for job in random_jobs(random.Random(seed), 4):
            found = increments(0, job, Budgets(1e9, 100.0, 0.02, 0.01))
            densities = [step.density for step in found]
            assert densities == sorted(densities, reverse=True)
            assert all(step.value > 0.0 and step.pages > 0.0 for step in found)
            assert [step.below for step in found] == [None, *(step.form for step in found[:-1])]


def test_a_huge_valuable_request_beats_many_dense_small_ones() -> None:
    jobs = [Job(100.0, 50.0, (FULL,)), *(Job(3.0, 1.0, (FULL,)) for _ in range(20))]
    assert choose(jobs, pages=50.0, count=99) == {0: FULL}


def test_no_more_than_count_are_chosen() -> None:
    jobs = [Job(1.0, 1.0, (FULL,)) for _ in range(9)]
    assert len(choose(jobs, pages=100.0, count=4)) == 4


def test_the_hidden_form_is_left_where_it_costs_more_than_it_saves() -> None:
    hidden = Form(0.5, 10.0)
    assert choose([Job(1.0, 4.0, (hidden, FULL))], pages=4.0, count=1) == {0: FULL}
    cheap = Form(0.5, 0.01)
    both = choose([Job(1.0, 4.0, (cheap, FULL))] * 2, pages=4.0, count=2)
    assert both == {0: cheap, 1: cheap}


def cost_model(per_hidden_token: float) -> CostModel:
    return CostModel(
        name="test",
        fixed=0.1,
        per_prefill_token=0.001,
        per_attention=0.0,
        per_decode=0.01,
        per_context_token=0.0,
        per_hidden_token=per_hidden_token,
    )


def crowded(tiers: TierConfig, *, longest: int = 16, **options: object) -> Worker:
    """Twelve requests that share a prefix and do not fit together, run to their ends."""
    worker = Worker(policy="adaptive", num_pages=24, tiers=tiers, step_seconds=0.05, **options)
    shared = [1, 2, 3, 4, 5, 6, 7, 8]
    for number in range(12):
        prompt = [*shared, *(number + 10,) * (1 + number)]
        max_tokens = 16 if number % 4 else longest
        worker.add(make_request(f"r{number}", prompt, max_tokens=max_tokens, ignore_eos=True))
    worker.run()
    worker.assert_complete()
    return worker


@pytest.mark.parametrize("hidden_page_tokens", [6, 8])
def test_tokens_do_not_depend_on_the_form(hidden_page_tokens: int) -> None:
    tiers = TierConfig(hidden_page_tokens=hidden_page_tokens, cost=cost_model(1e-6))
    worker = crowded(tiers)
    assert worker.engine.num_hidden > 0 and worker.scheduler.tier_totals.hidden_starts > 0


@pytest.mark.parametrize("host_pages", [0, 60])
@pytest.mark.parametrize("int8_page_tokens", [6, 7])
def test_tokens_do_not_depend_on_int8(int8_page_tokens: int, host_pages: int) -> None:
    """To the pretend engine int8 is exact, but no two requests may read what it had."""
    tiers = TierConfig(
        int8_page_tokens=int8_page_tokens,
        hidden_page_tokens=8,
        host_pages=host_pages,
        page_copy_seconds=1e-6,
        cost=replace(cost_model(1e-3), per_int8_token=1e-6),
    )
    worker = crowded(tiers, longest=40)
    assert worker.engine.num_int8 > 0 and worker.scheduler.tier_totals.int8_starts > 0


def test_who_runs_goes_on_in_int8_before_others_are_late() -> None:
    """Without a newcomer nobody changes its form; what was shared before stays so for others."""
    tiers = TierConfig(int8_page_tokens=8, cost=replace(cost_model(0.0), per_int8_token=1e-6))
    num_shrunk = 0
    for at in range(1, 30):
        worker = Worker(policy="adaptive", num_pages=32, tiers=tiers, step_seconds=0.005)
        shared = [1] * 16
        for number in range(2):
            prompt = [*shared, *[number + 2] * 24]
            worker.submit(f"runs {number}", prompt, max_tokens=30, ignore_eos=True)
        for _ in range(at):
            worker.step()
        assert worker.engine.num_shrunk == 0
        worker.submit("new", [9] * 60, max_tokens=8, ignore_eos=True)
        worker.run()
        worker.assert_complete()
        num_shrunk += worker.engine.num_shrunk
    assert num_shrunk > 20


def test_a_dear_hidden_form_is_not_used() -> None:
    tiers = TierConfig(hidden_page_tokens=8, cost=cost_model(100.0))
    worker = crowded(tiers)
    assert worker.scheduler.tier_totals.hidden_starts == 0


def test_who_runs_leaves_the_hidden_form_only_for_pages_that_are_free() -> None:
    tiers = TierConfig(hidden_page_tokens=8, cost=cost_model(1e-5))
    worker = crowded(tiers, longest=60, max_batch_tokens=64)
    upgraded = [batch for batch in worker.batches if batch.conversions]
    assert upgraded and worker.engine.num_upgraded == sum(len(b.conversions) for b in upgraded)


def test_late_requests_start_after_those_in_time_until_they_are_pinned() -> None:
    worker = Worker(policy="adaptive", num_pages=8, max_sequences=1, step_seconds=0.5)
    worker.submit("runs", [1] * 4, max_tokens=5)
    worker.step()
    worker.submit("late", [2] * 4, max_tokens=2)
    for _ in range(3):
        worker.step()
    worker.submit("in time", [3] * 4, max_tokens=2)
    worker.run()
    order = [batch.prefill_tokens[0] for batch in worker.batches if len(batch.prefill_tokens)]
    assert order == [1, 3, 2]


@pytest.mark.parametrize("host_pages", [0, 20, 200])
def test_who_had_a_hundred_tokens_swaps_for_who_would_be_late(host_pages: int) -> None:
    """The newcomer does not fit beside the one that runs; a host of 20 pages cannot take that."""
    tiers = TierConfig(host_pages=host_pages, page_copy_seconds=1e-6, cost=cost_model(0.0))
    options = {"tiers": tiers, "context_tokens": 176}
    worker = Worker(policy="adaptive", num_pages=44, step_seconds=0.005, **options)
    worker.submit("runs", [1] * 60, max_tokens=112, ignore_eos=True)
    for _ in range(62):
        worker.step()
    worker.submit("new", [2] * 60, max_tokens=2, ignore_eos=True)
    while not worker.output("new").tokens:
        worker.step()
    had = len(worker.output("runs").tokens)
    assert 100 <= had < 110 if host_pages == 200 else had == 112
    worker.run()
    worker.assert_complete()
    assert worker.scheduler.load().preemptions_total == (host_pages == 200)


def random_plan(rng: random.Random) -> tuple[Room, list[Prospect], list[Runner], list[Runner]]:
    """Who waits, who runs in the hidden form, and who may be paused."""
    room = Room(
        pages=rng.choice([0, 3, 10, 40]),
        count=rng.choice([1, 3, 9]),
        num_live=rng.randrange(1, 30),
        page_tokens=16,
        forms=(CompactForm(KvForm.HIDDEN, 32, rng.choice([1e-6, 1e-3, 0.1]) / 16),),
        pace=Pace(rng.choice([64, 512]), 0.1),
        tokens=rng.choice([100, 1000, 100_000]),
    )
    waiting = [
        Prospect(
            Request(),
            3.0 * rng.random(),
            rng.random(),
            1.0,
            rng.randrange(1, 30),
            can_wait=False,
            tokens=rng.randrange(1, 300),
        )
        for _ in range(rng.randrange(6))
    ]
    hidden = [Runner(Request(runs=True), rng.randrange(1, 20)) for _ in range(rng.randrange(4))]
    pausable = [
        Runner(Request(runs=True), rng.randrange(1, 20), rng.choice([0.0, 0.01, 5.0]))
        for _ in range(rng.randrange(4))
    ]
    return room, waiting, hidden, pausable


def test_nobody_leaves_its_form_while_that_is_still_best() -> None:
    """Whoever is paused would not fit beside those who start, and whoever stays in the hidden form
    would not find the pages that it takes more.
    """
    num_pauses = num_upgrades = 0
    for seed in range(2000):
        room, waiting, hidden, pausable = random_plan(random.Random(seed))
        plan = Adaptive(PolicyOptions()).plan(waiting, room, hidden=hidden, pausable=pausable)
        pages = {id(p.candidate): p.pages for p in [*waiting, *hidden, *pausable]}
        paused = {id(candidate) for candidate in plan.pauses}
        left = float(room.pages + sum(pages[number] for number in paused))
        left -= sum(pages[id(c)] * (0.5 if is_hidden else 1.0) for c, is_hidden in plan.starts)
        left -= sum(0.5 * pages[id(c)] for c in plan.upgrades)
        num_free = room.count + len(paused) - len(plan.starts)
        assert left >= -0.5 * len(plan.starts) and num_free >= 0
        for number in paused:
            assert pages[number] > left or num_free == 0, seed
        for runner in hidden:
            stays = all(runner.candidate is not c for c in plan.upgrades)
            assert not stays or max(0.5 * runner.pages, 0.5) > left, seed
        num_pauses += len(paused)
        num_upgrades += len(plan.upgrades)
    assert num_pauses > 100 and num_upgrades > 100


def test_who_runs_leaves_the_hidden_form_also_when_no_place_is_free() -> None:
    room = Room(pages=10, count=0, num_live=4, page_tokens=16, forms=HALF, **AT_EASE)
    runner = Runner(Request(runs=True), 20)
    plan = Adaptive(PolicyOptions()).plan([], room, hidden=[runner])
    assert plan.upgrades == [runner.candidate]


@pytest.mark.parametrize("pause_seconds", [0.0, 0.1])
@pytest.mark.parametrize("room_pages", [60, 50])
def test_nobody_is_paused_who_makes_room_for_nobody(room_pages: int, pause_seconds: float) -> None:
    """Three newcomers of 20 pages, and runners of 10 that are worth hardly anything."""
    prospects = [
        Prospect(Request(), 0.2, 0.1, 1.0, 20, can_wait=False, tokens=320) for _ in range(3)
    ]
    runners = [Runner(Request(runs=True), 10, pause_seconds) for _ in range(4)]
    room = Room(pages=room_pages, count=9, num_live=7, page_tokens=16, forms=(), **AT_EASE)
    plan = Adaptive(PolicyOptions()).plan(prospects, room, pausable=runners)
    assert len(plan.starts) == 3
    assert len(plan.pauses) == (60 - room_pages) // 10


@pytest.mark.parametrize(("room_pages", "shrinks"), [(20, 0), (16, 1), (11, 2), (0, 4)])
def test_nobody_shrinks_who_makes_room_for_nobody(room_pages: int, shrinks: int) -> None:
    """A newcomer of 20 pages, 10 in int8, and runners of 10 that would take 5."""
    int8 = CompactForm(KvForm.INT8, 32, 1e-6)
    prospects = [Prospect(Request(), 0.5, 0.1, 1.0, 20, can_wait=False, tokens=320)]
    runners = [Runner(Request(runs=True), 10) for _ in range(4)]
    room = Room(pages=room_pages, count=9, num_live=5, page_tokens=16, forms=(int8,), **AT_EASE)
    plan = Adaptive(PolicyOptions()).plan(prospects, room, shrinkable=runners)
    [(_, form)] = plan.starts
    taken = 20 if form is KvForm.FULL else 10
    assert taken <= room_pages + 5 * len(plan.shrinks)
    assert len(plan.shrinks) <= shrinks
