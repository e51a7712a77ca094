"""The oracle against what can be worked out by hand or tried exhaustively."""

import itertools
import random

import pytest

from preble.cost import CostModel
from preble.page_keys import KEY_BYTES
from preble_loadgen.oracle import Arrival, StaticModel, best_placement

COST = CostModel(
    name="one ms a token",
    fixed=0.0,
    per_prefill_token=1e-3,
    per_attention=0.0,
    per_decode=0.0,
    per_context_token=0.0,
)


def family(rng: random.Random, num_pages: int, count: int, *, every: float) -> list[Arrival]:
    head = rng.randbytes(num_pages * KEY_BYTES)
    return [
        Arrival(i * every, head + rng.randbytes(KEY_BYTES), (num_pages + 1) * 16)
        for i in range(count)
    ]


def test_a_worker_serves_in_order_and_keeps_what_it_computed() -> None:
    first, second = family(random.Random(1), 10, 2, every=0.1)
    model = StaticModel([first, second], COST)
    score = model.score([0, 1])
    # 176 tokens, done at 0.176; the second waits 0.076 s and computes its last page.
    assert score.seconds == pytest.approx(0.176 + 0.076 + 0.016)
    assert score.cached == 160
    assert model.score([1]).cached == 0


def test_an_exact_repeat_computes_its_last_token() -> None:
    arrival = family(random.Random(2), 10, 1, every=0.0)[0]
    model = StaticModel([arrival, arrival], COST)
    assert model.score([0, 1]).seconds == pytest.approx(0.176 + 0.177)


def test_it_separates_two_families_that_two_workers_can_carry() -> None:
    rng = random.Random(3)
    both = family(rng, 50, 12, every=0.5) + family(rng, 50, 12, every=0.5)
    arrivals = sorted(both, key=lambda arrival: arrival.at)
    found = best_placement(arrivals, COST, num_workers=2, rng=random.Random(0))
    homes = {
        arrival.page_keys[:KEY_BYTES]: worker
        for arrival, worker in zip(arrivals, found.workers, strict=True)
    }
    assert sorted(homes.values()) == [0, 1]
    assert all(
        homes[arrival.page_keys[:KEY_BYTES]] == worker
        for arrival, worker in zip(arrivals, found.workers, strict=True)
    )
    assert found.cached_share == pytest.approx(22 * 50 / (24 * 51))


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_optimum_of_small_cases_or_nearly(seed: int) -> None:
    rng = random.Random(seed)
    heads = [rng.randbytes(20 * KEY_BYTES) for _ in range(3)]
    times = sorted(rng.uniform(0.0, 1.0) for _ in range(9))
    arrivals = [Arrival(at, rng.choice(heads) + rng.randbytes(KEY_BYTES), 21 * 16) for at in times]
    model = StaticModel(arrivals, COST)
    optimum = min(
        sum(model.score([i for i in range(9) if bits[i] == w]).seconds for w in (0, 1)) / 9
        for bits in itertools.product((0, 1), repeat=9)
    )
    found = best_placement(arrivals, COST, num_workers=2, rng=random.Random(seed))
    assert optimum <= found.mean_ttft + 1e-9
    assert found.mean_ttft <= 1.05 * optimum


def test_the_same_seed_finds_the_same() -> None:
    arrivals = family(random.Random(5), 20, 40, every=0.05)
    found = [best_placement(arrivals, COST, num_workers=3, rng=random.Random(7)) for _ in range(2)]
    assert found[0] == found[1]
