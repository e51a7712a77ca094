"""The worker's estimate of an output's length, held against plain means of what finished."""

import random
from itertools import pairwise

import pytest

from preble_worker.length_estimate import MEMORY, LengthEstimate


def test_with_perfect_predictions_it_is_the_prediction() -> None:
    estimate, rng = LengthEstimate(), random.Random(1)
    for _ in range(500):
        length = rng.randint(1, 2000)
        estimate.learn(length, length)
    for predicted, generated in ((100, 0), (100, 50), (1000, 1), (7, 3)):
        assert estimate.expected(predicted, generated) == pytest.approx(predicted)


def test_with_a_constant_prediction_it_is_the_mean_of_all_longer_outputs() -> None:
    estimate, rng = LengthEstimate(), random.Random(2)
    lengths = [max(1, round(rng.lognormvariate(5, 1))) for _ in range(MEMORY - 1)]
    for length in lengths:
        estimate.learn(200, length)
    for generated in (0, 20, 100, 300, 800):
        longer = [length for length in lengths if length > generated]
        expected = sum(longer) / len(longer)
        # The bucket in which `generated` lies counts as a whole, and buckets are 9 % wide.
        assert estimate.expected(200, generated) == pytest.approx(expected, rel=0.06)


def test_it_corrects_a_predictor_that_is_wrong_by_a_factor() -> None:
    estimate = LengthEstimate()
    for length in range(10, 1000, 7):
        estimate.learn(length / 2, length)
    assert estimate.expected(100, 0) == pytest.approx(200)
    assert estimate.expected(100, 150) == pytest.approx(200)


@pytest.mark.parametrize("predicted", [None, 1, 30, 5000])
def test_an_estimate_is_beyond_what_there_is_and_never_falls(predicted: int | None) -> None:
    estimate, rng = LengthEstimate(), random.Random(3)
    for _ in range(300):
        estimate.learn(rng.choice([None, 20, 100]), rng.randint(1, 300))
    estimates = [estimate.expected(predicted, generated) for generated in range(5000)]
    assert all(n > generated for generated, n in enumerate(estimates))
    within = [n for generated, n in enumerate(estimates) if generated < 100]
    assert all(b >= a - 1e-9 for a, b in pairwise(within))


def test_before_anything_finished_it_is_the_prediction_and_then_doubles() -> None:
    estimate = LengthEstimate()
    assert estimate.expected(50, 0) == 50
    assert estimate.expected(50, 49) == 50
    assert estimate.expected(50, 60) == 120
    assert estimate.expected(None, 0) == 1


def test_without_a_prediction_the_mean_stands_for_it() -> None:
    estimate = LengthEstimate()
    for _ in range(10):
        estimate.learn(None, 40)
    assert estimate.mean == 40
    assert estimate.expected(None, 0) == pytest.approx(40)
    assert estimate.expected(None, 39) == pytest.approx(40)


def test_the_past_fades() -> None:
    estimate = LengthEstimate()
    for _ in range(MEMORY):
        estimate.learn(100, 1000)
    for _ in range(10 * MEMORY):
        estimate.learn(100, 10)
    assert estimate.expected(100, 0) == pytest.approx(10, rel=0.05)
    assert estimate.mean == pytest.approx(10, rel=0.05)


def test_outputs_without_tokens_teach_nothing() -> None:
    estimate = LengthEstimate()
    estimate.learn(10, 0)
    assert estimate.mean == 0
    assert estimate.expected(10, 0) == 10
