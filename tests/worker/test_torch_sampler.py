"""Draws follow the distribution asked for, and depend on (seed, position) alone."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from preble_worker.sampler import SamplingRows, sample, uniforms

VOCAB = 12
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, 3.0, 1.5, -1.0, -3.0, 0.2, 1.0, float("-inf")])
DRAWS = 20_000

# The 99.9 % quantile of chi-square by degrees of freedom.
CHI_SQUARE_LIMIT = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 10: 29.59}


def rows(num: int, **values: Any) -> SamplingRows:
    """Rows with all options off, but `values`; a scalar stands for all rows."""
    given = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0, "position": 0} | values
    dtypes = {"temperature": "f4", "top_p": "f4", "top_k": "i4", "seed": "u8", "position": "i8"}
    return SamplingRows(
        **{
            name: np.broadcast_to(np.asarray(value, dtype=dtypes[name]), num).copy()
            for name, value in given.items()
        }
    )


def draw(num: int = DRAWS, logits: torch.Tensor = LOGITS, **values: Any) -> npt.NDArray[np.int64]:
    """`num` draws at successive positions of one request."""
    asked = rows(num, position=np.arange(num), seed=7, **values)
    return sample(logits.expand(num, -1), asked).numpy()


def softmax(temperature: float, kept: list[int] | None = None) -> npt.NDArray[np.float64]:
    scores = LOGITS.double().numpy() / temperature
    if kept is not None:
        hidden = np.ones(VOCAB, dtype=bool)
        hidden[kept] = False
        scores[hidden] = -np.inf
    weights: npt.NDArray[np.float64] = np.exp(scores - scores.max())
    return weights / weights.sum()


def chi_square_fits(drawn: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> bool:
    counts = np.bincount(drawn, minlength=VOCAB)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    wanted = expected[possible] * len(drawn)
    statistic = float(((counts[possible] - wanted) ** 2 / wanted).sum())
    return statistic < CHI_SQUARE_LIMIT[int(possible.sum()) - 1]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_draws_follow_softmax(temperature: float) -> None:
    assert chi_square_fits(draw(temperature=temperature), softmax(temperature))


def test_the_chi_square_test_can_fail() -> None:
    assert not chi_square_fits(draw(temperature=1.0), softmax(1.1))


def test_top_k_keeps_the_likeliest() -> None:
    assert chi_square_fits(draw(top_k=3), softmax(1.0, [5, 0, 6]))


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    """Softmax is 0.46 for token 5, 0.17 for 0, 0.10 for 6, and 0.06 each for 1 and 10."""
    order = np.argsort(-softmax(1.0), kind="stable").tolist()
    shares = np.cumsum(softmax(1.0)[order])
    kept = order[: int(np.searchsorted(shares, 0.7)) + 1]
    assert kept == [5, 0, 6]
    assert chi_square_fits(draw(top_p=0.7), softmax(1.0, kept))


def test_top_p_counts_shares_after_top_k_and_temperature() -> None:
    """Of the two likeliest, token 5 alone has 0.73: enough for 0.7."""
    assert set(draw(num=500, top_k=2, top_p=0.7).tolist()) == {5}
    assert chi_square_fits(draw(top_k=2, top_p=0.75), softmax(1.0, [5, 0]))
    assert len(set(draw(num=500, top_p=0.7, temperature=5.0).tolist())) > 3


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-30}])
def test_narrowest_options_take_the_likeliest(options: dict[str, float]) -> None:
    assert set(draw(num=200, **options).tolist()) == {5}


def test_wide_options_change_no_draw() -> None:
    """A top_k beyond the vocabulary and top_p 1 keep the distribution, if in another order."""
    assert chi_square_fits(draw(top_k=10_000), softmax(1.0))
    assert chi_square_fits(draw(top_p=0.999999), softmax(1.0))


def test_temperature_zero_is_the_largest_logit_whatever_else_is_set() -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    asked = rows(50, temperature=0.0, top_p=0.5, top_k=7, seed=np.arange(50))
    assert sample(logits, asked).tolist() == logits.argmax(-1).tolist()


def mixed_rows(num: int) -> SamplingRows:
    rng = np.random.default_rng(3)
    return rows(
        num,
        temperature=rng.choice([0.0, 0.5, 1.0, 1.7], num),
        top_p=rng.choice([0.3, 0.9, 1.0], num),
        top_k=rng.choice([0, 1, 5, 40], num),
        seed=rng.integers(0, 1 << 63, num),
        position=rng.integers(0, 5000, num),
    )


def test_a_draw_is_the_same_alone_and_in_any_batch() -> None:
    num = 64
    logits = torch.randn(num, 300, generator=torch.Generator().manual_seed(1)) * 3
    asked = mixed_rows(num)
    together = sample(logits, asked)
    alone = [int(sample(logits[i : i + 1], asked.take(np.array([i])))[0]) for i in range(num)]
    assert alone == together.tolist()
    order = np.random.default_rng(0).permutation(num)
    shuffled = sample(logits[torch.from_numpy(order)], asked.take(order))
    assert shuffled.tolist() == together[torch.from_numpy(order)].tolist()


def test_seeds_and_positions_give_different_numbers() -> None:
    seeds = np.arange(200, dtype=np.uint64).repeat(200)
    positions = np.tile(np.arange(200), 200)
    numbers = uniforms(seeds, positions)
    assert len(np.unique(numbers)) == len(numbers)
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    grid = numbers.reshape(200, 200)
    for means in (grid.mean(axis=0), grid.mean(axis=1)):
        assert np.abs(means - 0.5).max() < 5 * (1 / 12 / 200) ** 0.5


NUMBERS = [0.2817612977223689, 0.6524484863739417, 0.8628561488603737, 0.7254382565706692]


def test_numbers_are_fixed_for_all_time() -> None:
    """A cluster of two versions must draw alike; these values are part of the protocol."""
    seeds = np.array([0, 0, 1, (1 << 64) - 1], dtype=np.uint64)
    positions = np.array([0, 1, 0, 1 << 40])
    assert uniforms(seeds, positions).tolist() == NUMBERS


def test_large_and_low_logits_draw_without_nan() -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0], [-1e30, -1e30, -1e30]])
    drawn = sample(logits, rows(2, temperature=1e-3, top_p=0.9))
    assert int(drawn[0]) == 0
    assert 0 <= int(drawn[1]) < 3
