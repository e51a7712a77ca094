"""The default policy: its terms one by one, and the scenarios at which other routers fail."""

import random
from collections.abc import Callable

import pytest
from routing_helpers import (
    Arrival,
    Job,
    PretendCluster,
    cached_share,
    pages,
    poisson,
    quantile,
    route,
    synced_scheduler,
    ttft,
)

from preble.errors import ConfigError
from preble.events import CacheEvents, Stored
from preble.types import LoadReport
from preble_router.policies import make_policy
from preble_router.policies.preble import Preble, PrebleWeights
from preble_router.scheduler import GlobalScheduler
from preble_router.stimuli import CacheChanged, Progress, RequestFinished, StepReport

RNG = random.Random(21)
PATH = pages(RNG, 64)


def explained(scheduler: GlobalScheduler, path: bytes, now: float) -> dict[str, dict[str, float]]:
    answer = scheduler.explain(route("probe", path), now=now)
    return {c.worker_id: c.terms for c in answer.candidates}


def stored(scheduler: GlobalScheduler, worker_id: str, path: bytes) -> None:
    batch = CacheEvents(1, 1, (Stored(path),))
    scheduler.observe(CacheChanged(worker_id, batch), now=0.0)


def decoding(scheduler: GlobalScheduler, worker_id: str, count: int, *, now: float) -> None:
    """Put `count` decoding requests on one worker."""
    others = {view.worker_id for view in scheduler.workers()} - {worker_id}
    for index in range(count):
        name = f"{worker_id}-{index}"
        scheduler.place(route(name, pages(RNG, 4), excluded=others), now=now)
        progress = (Progress(name, 1, 1, 0),)
        load = LoadReport(free_pages=10_000)
        step = StepReport(worker_id=worker_id, load=load, progress=progress)
        scheduler.observe(step, now=now)


# Terms


def busy_pair() -> GlobalScheduler:
    """Worker a holds the path and is busy with prefill and decodes; b is empty."""
    scheduler = synced_scheduler(Preble(), ["a", "b"])
    decoding(scheduler, "a", 10, now=0.0)
    stored(scheduler, "a", PATH)
    scheduler.place(route("queued", pages(RNG, 50), excluded={"b"}), now=0.0)
    return scheduler


def test_each_term_says_what_it_means() -> None:
    terms = explained(busy_pair(), PATH, 1.0)
    assert terms["a"]["wait"] > terms["b"]["wait"] == 0.0
    assert terms["a"]["own"] < terms["b"]["own"]
    assert terms["a"]["stall"] > 0.0 and terms["b"]["stall"] == 0.0
    assert terms["a"]["decode"] > terms["b"]["decode"] > 0.0
    # As many are delayed as come while the queue that it joins empties.
    delayed = [t["delay"] / t["own"] / (t["wait"] + t["own"]) for t in terms.values()]
    assert delayed[0] == pytest.approx(delayed[1]) and delayed[0] > 0.0


def test_the_choice_is_the_least_sum_of_its_terms() -> None:
    rng = random.Random(3)
    scheduler = synced_scheduler(Preble(), "abcdef")
    for worker_id in "abcd":
        load = LoadReport(
            free_pages=rng.randrange(0, 60),
            waiting_prefill_tokens=rng.randrange(0, 3000),
            num_running=rng.randrange(0, 9),
            decode_context_tokens=rng.randrange(0, 9000),
        )
        scheduler.observe(StepReport(worker_id=worker_id, load=load), now=0.1)
    documents = [pages(rng, 60) for _ in range(4)]
    for index in range(80):
        request = route(f"r{index}", rng.choice(documents) + pages(rng, rng.randrange(1, 9)))
        answer = scheduler.explain(request, now=1.0 + index * 0.01)
        sums = {c.worker_id: sum(c.terms.values()) for c in answer.candidates}
        least = min(sums.values())
        assert sums[answer.placement.worker_id] <= least + 0.02 * 70 * 16 * 2e-3
        scheduler.place(request, now=1.0 + index * 0.01)
        scheduler.check()


@pytest.mark.parametrize("name", ["wait", "own", "delay", "stall", "decode", "evict", "plan"])
def test_each_term_can_be_switched_off(name: str) -> None:
    scheduler = synced_scheduler(Preble(PrebleWeights(**{name: 0.0})), ["a", "b"])
    decoding(scheduler, "a", 3, now=0.0)
    terms = explained(scheduler, PATH, 1.0)
    assert all(worker[name] == 0.0 for worker in terms.values())
    scheduler.place(route("r", PATH), now=1.0)


def test_dropping_what_will_be_wanted_again_costs() -> None:
    scheduler = synced_scheduler(Preble(), ["a", "b"])
    stored(scheduler, "a", PATH)
    stored(scheduler, "b", pages(RNG, 64))
    for index in range(5):
        assert scheduler.place(route(f"r{index}", PATH), now=1.0).worker_id == "a"
        scheduler.observe(RequestFinished(f"r{index}", 1, 5), now=1.0)
    for worker_id in ("a", "b"):
        full = LoadReport(free_pages=0, cached_pages=64, tree_pages=64)
        scheduler.observe(StepReport(worker_id=worker_id, load=full), now=2.0)
    terms = explained(scheduler, pages(RNG, 30), 2.0)
    assert terms["a"]["evict"] > terms["b"]["evict"] == 0.0
    placed = {scheduler.explain(route("x", pages(RNG, 30)), now=2.0).placement.worker_id}
    assert placed == {"b"}


def test_a_queue_takes_its_room_before_a_new_request() -> None:
    scheduler = synced_scheduler(Preble(), ["a", "b"])
    for worker_id in ("a", "b"):
        stored(scheduler, worker_id, PATH)
    for index in range(8):
        scheduler.place(route(f"r{index}", PATH), now=1.0)
        scheduler.observe(RequestFinished(f"r{index}", 1, 5), now=1.0)
    for index in range(3):
        scheduler.place(route(f"queued{index}", pages(RNG, 100), excluded={"b"}), now=1.0)
    for worker_id, waiting in (("a", 300), ("b", 0)):
        load = LoadReport(free_pages=300, cached_pages=64, waiting_prefill_tokens=waiting * 16)
        scheduler.observe(StepReport(worker_id=worker_id, load=load), now=2.0)
    terms = explained(scheduler, pages(RNG, 100), 2.0)
    assert terms["a"]["evict"] > terms["b"]["evict"] == 0.0


def test_a_busy_time_makes_fewer_copies_than_an_idle_one() -> None:
    def delay_of(arrivals: int) -> float:
        scheduler = synced_scheduler(Preble(), ["a", "b"])
        for index in range(arrivals):
            scheduler.place(route(f"r{index}", pages(RNG, 60)), now=index * 0.01)
        terms = explained(scheduler, PATH, 30.0)
        return terms["a"]["delay"] / terms["a"]["own"]

    assert delay_of(0) == 0.0
    assert delay_of(40) > 3 * delay_of(10) > 0.0


def test_a_queue_empties_later_while_more_prefill_comes() -> None:
    def delay_of(prompt_pages: int) -> float:
        scheduler = synced_scheduler(Preble(PrebleWeights(evict=0.0)), ["a", "b"])
        for index in range(40):
            scheduler.place(route(f"r{index}", pages(RNG, prompt_pages)), now=index * 0.1)
            scheduler.observe(RequestFinished(f"r{index}", 1, 5), now=index * 0.1)
        terms = explained(scheduler, PATH, 4.0)["a"]
        return terms["delay"] / terms["own"] / (terms["wait"] + terms["own"])

    idle, busy, swamped = delay_of(1), delay_of(40), delay_of(1000)
    assert 1.1 * idle < busy < swamped
    assert swamped == pytest.approx(idle * 2.0, rel=0.1)  # and not without bound


def test_equals_are_drawn_by_lot_not_by_order() -> None:
    first = set()
    for seed in range(30):
        scheduler = synced_scheduler(Preble(), "abcd", seed=seed)
        first.add(scheduler.place(route("r", PATH), now=0.0).worker_id)
    assert first == set("abcd")


def test_new_prefixes_begin_where_less_work_went_lately() -> None:
    scheduler = synced_scheduler(Preble(), "abcd")
    placed = []
    for index in range(40):
        request = route(f"r{index}", pages(RNG, 30), max_tokens=10)
        placed.append(scheduler.place(request, now=float(index)))
        scheduler.observe(RequestFinished(f"r{index}", 1, 10), now=index + 0.5)
    counts = [sum(p.worker_id == worker_id for p in placed) for worker_id in "abcd"]
    assert min(counts) >= 9


# Scenarios


def largest_share(cluster: PretendCluster, jobs: list[Job]) -> float:
    return max(cluster.shares(jobs).values())


@pytest.mark.parametrize("prefix_pages", [16, 64, 200])
def test_one_hot_prefix_in_a_burst_is_spread(prefix_pages: int) -> None:
    hot = pages(RNG, prefix_pages)
    cluster = PretendCluster("preble", 4)
    jobs = cluster.run([Arrival(0.0, hot + pages(RNG, 8), 100) for _ in range(32)])
    assert largest_share(cluster, jobs) <= 0.3


@pytest.mark.parametrize("prefix_pages", [16, 64, 200])
def test_one_hot_prefix_with_32_in_flight_is_spread(prefix_pages: int) -> None:
    hot = pages(RNG, prefix_pages)
    cluster = PretendCluster("preble", 4)
    times = poisson(random.Random(1), 30.0, 400)
    jobs = cluster.run([Arrival(at, hot + pages(RNG, 8), 100) for at in times])
    assert largest_share(cluster, jobs) <= 0.32
    assert largest_share(cluster, jobs[100:]) <= 0.32


def test_a_system_prompt_shared_by_all_does_not_draw_all_to_one_worker() -> None:
    system = pages(RNG, 32)
    cluster = PretendCluster("preble", 4)
    times = poisson(random.Random(2), 12.0, 300)
    jobs = cluster.run([Arrival(at, system + pages(RNG, 32), 100) for at in times])
    assert largest_share(cluster, jobs) <= 0.3
    assert cached_share(jobs) > 0.45


def test_a_burst_after_a_quiet_warm_up_is_spread() -> None:
    families = [pages(RNG, 64) for _ in range(8)]
    cluster = PretendCluster("preble", 4)
    quiet = [Arrival(float(i), families[i % 8] + pages(RNG, 4), 20) for i in range(192)]
    burst = [Arrival(193.0, families[i % 8] + pages(RNG, 4), 100) for i in range(32)]
    jobs = cluster.run(quiet + burst)
    assert largest_share(cluster, jobs[192:]) <= 0.35
    assert cached_share(jobs[192:]) > 0.85


def test_families_meet_where_one_worker_can_carry_them() -> None:
    families = [pages(RNG, 182) for _ in range(8)]
    rng = random.Random(3)
    arrivals = []
    for at in poisson(rng, 14.0, 400):
        family = rng.randrange(8)
        arrivals.append(Arrival(at, families[family] + pages(rng, 18), 60, family))
    cluster = PretendCluster("preble", 4)
    jobs = cluster.run(arrivals)
    assert cluster.meeting_share(jobs) >= 0.9
    assert largest_share(cluster, jobs) <= 0.4
    assert cached_share(jobs) > 0.85


def unshared(seed: int) -> list[Arrival]:
    rng = random.Random(seed)
    return [
        Arrival(at, pages(rng, rng.randrange(16, 200)), rng.randrange(20, 100))
        for at in poisson(rng, 16.0, 250)
    ]


def test_without_sharing_it_is_as_balanced_as_the_least_loaded() -> None:
    def run(policy: str) -> tuple[PretendCluster, list[Job]]:
        cluster = PretendCluster(policy, 4)
        return cluster, cluster.run(unshared(4))

    (ours, our_jobs), (_, their_jobs) = run("preble"), run("least_loaded")
    assert largest_share(ours, our_jobs) <= 0.3
    assert quantile(ttft(our_jobs), 0.99) <= 1.25 * quantile(ttft(their_jobs), 0.99)
    assert sum(ttft(our_jobs)) <= 1.15 * sum(ttft(their_jobs))


def many_documents(rate: float, count: int, seed: int) -> list[Arrival]:
    rng = random.Random(seed)
    documents = [pages(rng, 128) for _ in range(80)]
    weights = [1 / (i + 1) ** 0.9 for i in range(80)]
    chosen = rng.choices(range(80), weights, k=count)
    times = poisson(rng, rate, count)
    return [
        Arrival(at, documents[d] + pages(rng, 8), 30, d)
        for at, d in zip(times, chosen, strict=True)
    ]


@pytest.mark.parametrize("worse", ["round_robin", "least_loaded", "e2"])
def test_documents_under_load_are_answered_sooner_than_by(worse: str) -> None:
    def mean_ttft(policy: str) -> float:
        cluster = PretendCluster(policy, 4, capacity_tokens=50_000)
        jobs = cluster.run(many_documents(70.0, 500, 5))
        cluster.scheduler.check()
        return sum(ttft(jobs)) / len(jobs)

    assert mean_ttft("preble") < mean_ttft(worse)


def test_a_slow_worker_is_given_less() -> None:
    cluster = PretendCluster("preble", 4, speeds=(1.0, 1.0, 1.0, 3.0))
    jobs = cluster.run(unshared(6))
    shares = cluster.shares(jobs[50:])
    assert shares["w3"] < 0.6 * min(shares["w0"], shares["w1"], shares["w2"])


@pytest.mark.parametrize("policy", ["preble", "longest_prefix"])
@pytest.mark.parametrize("make", [unshared, lambda seed: many_documents(40.0, 300, seed)])
def test_the_predicted_cached_tokens_are_the_actual_ones(
    policy: str, make: Callable[[int], list[Arrival]]
) -> None:
    cluster = PretendCluster(policy, 4, capacity_tokens=100_000)
    jobs = cluster.run(make(7))
    predicted = sum(job.predicted_cached_tokens for job in jobs)
    actual = sum(job.cached_tokens for job in jobs)
    assert abs(predicted - actual) <= 0.02 * max(actual, 1)


def test_its_weights_can_be_set_by_name() -> None:
    policy = make_policy("preble:plan=0:delay=2.5")
    assert isinstance(policy, Preble)
    assert policy.weights == PrebleWeights(plan=0.0, delay=2.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preble:speed=1", "'speed' is no term; choose from wait, own"),
        ("preble:plan=-1", "plan must be a number of at least 0, not '-1'"),
        ("preble:plan", "plan must be a number"),
        ("e2:plan=0", "only preble has weights"),
        ("best", "no routing policy is named 'best'; choose from round_robin"),
    ],
)
def test_a_wrong_policy_is_told_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_policy(text)
