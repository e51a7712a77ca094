"""Predictors of output length: what they learn, from whom, how much they keep, and how good."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preble.errors import ConfigError
from preble.page_keys import namespace_seed, pack_tokens, page_keys
from preble_router.lengths import LENGTH_PREDICTOR_NAMES, make_length_predictor
from preble_router.lengths.accuracy import RunningAccuracy, accuracy_of
from preble_router.lengths.forecasts import LengthForecasts
from preble_router.lengths.max_tokens import MaxTokens
from preble_router.lengths.neighbours import graph_indexes
from preble_router.lengths.ngrams import DIMENSIONS, MAX_TOKENS, hashed_ngrams
from preble_router.lengths.predictor import LengthPredictor, Prompt, Vector
from preble_router.lengths.prefix_mean import PrefixMean
from preble_router.lengths.retrieval import NeighbourIndex, Retrieval


class ExactIndex:
    """The nearest by brute force."""

    def __init__(self) -> None:
        self.vectors: dict[int, Vector] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    def add(self, key: int, vector: Vector) -> None:
        assert key not in self.vectors
        self.vectors[key] = vector

    def remove(self, key: int) -> None:
        del self.vectors[key]

    def nearest(self, vector: Vector, count: int) -> list[int]:
        likeness = {key: float(other @ vector) for key, other in self.vectors.items()}
        return sorted(likeness, key=lambda key: -likeness[key])[:count]


def exact_index(dimensions: int) -> NeighbourIndex:
    return ExactIndex()


def prompt(*ids: int, tenant: str = "", max_tokens: int = 1000) -> Prompt:
    tokens = pack_tokens(list(ids))
    keys = page_keys(tokens, seed=namespace_seed(tenant))
    return Prompt(tokens=tokens, page_keys=keys, tenant=tenant, max_tokens=max_tokens)


def task(kind: int, rng: random.Random, *, tenant: str = "") -> Prompt:
    """A prompt of one of several applications: a fixed beginning and a varying end."""
    fixed = range(1000 * kind, 1000 * kind + 64)
    return prompt(*fixed, *(rng.randrange(50_000) for _ in range(20)), tenant=tenant)


LEARNERS = [PrefixMean, lambda: Retrieval(exact_index), lambda: Retrieval(graph_indexes())]
learners = pytest.mark.parametrize("make", LEARNERS, ids=["prefix_mean", "exact", "graph"])


@learners
def test_prompts_alike_are_answered_alike(make: type[LengthPredictor]) -> None:
    predictor, rng = make(), random.Random(1)
    assert predictor.predict(task(0, rng)) is None, "it knows nothing yet"
    for _ in range(200):
        kind = rng.randrange(4)
        predictor.learn(task(kind, rng), 100 * (kind + 1) + rng.randint(-10, 10))
    for kind in range(4):
        assert predictor.predict(task(kind, rng)) == pytest.approx(100 * (kind + 1), rel=0.15)


@learners
def test_tenants_learn_nothing_of_one_another(make: type[LengthPredictor]) -> None:
    predictor, rng = make(), random.Random(2)
    for _ in range(50):
        predictor.learn(task(0, rng, tenant="a"), 10)
    assert predictor.predict(task(0, rng, tenant="b")) is None
    for _ in range(50):
        predictor.learn(task(0, rng, tenant="b"), 500)
    assert predictor.predict(task(0, rng, tenant="a")) == pytest.approx(10)
    assert predictor.predict(task(0, rng, tenant="b")) == pytest.approx(500)


@learners
def test_equal_histories_give_equal_predictions(make: type[LengthPredictor]) -> None:
    def predictions() -> list[float | None]:
        predictor, rng, made = make(), random.Random(3), []
        for i in range(300):
            made.append(predictor.predict(task(i % 7, rng)))
            predictor.learn(task(i % 7, rng), rng.randint(1, 500))
        return made

    assert predictions() == predictions()


@pytest.mark.parametrize("make_index", [exact_index, graph_indexes()], ids=["exact", "graph"])
def test_retrieval_forgets_the_oldest_and_tenants_with_nothing_left(make_index) -> None:  # type: ignore[no-untyped-def]
    predictor, rng = Retrieval(make_index, max_requests=50), random.Random(4)
    for _ in range(50):
        predictor.learn(task(0, rng, tenant="old"), 7)
    for i in range(50):
        predictor.learn(task(0, rng, tenant="new"), 9)
        assert len(predictor) == 50
        known = predictor.predict(task(0, rng, tenant="old"))
        assert known == (7 if i < 49 else None)
    assert predictor.predict(task(0, rng, tenant="new")) == 9


def test_prefix_means_stay_bounded_and_the_used_ones_stay() -> None:
    predictor, rng = PrefixMean(max_prefixes=200), random.Random(5)
    for _ in range(2000):
        predictor.learn(task(0, rng), 30)
        predictor.learn(prompt(*(rng.randrange(50_000) for _ in range(100))), 900)
        assert len(predictor) <= 200
    assert predictor.predict(task(0, rng)) == pytest.approx(30, rel=0.5)


def test_the_longest_known_prefix_counts_most_once_it_has_seen_enough() -> None:
    predictor, rng = PrefixMean(), random.Random(7)
    for _ in range(100):
        predictor.learn(prompt(*range(64), *(rng.randrange(50_000) for _ in range(80))), 200)
    for _ in range(40):
        predictor.learn(prompt(*range(128), *(rng.randrange(50_000) for _ in range(8))), 20)
    assert predictor.predict(prompt(*range(64), *[9] * 80)) == pytest.approx(149, abs=15)
    assert predictor.predict(prompt(*range(128), *[9] * 8)) == pytest.approx(32, abs=3)


def test_the_limit_is_the_prediction_of_max_tokens() -> None:
    assert MaxTokens().predict(prompt(1, max_tokens=77)) == 77


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_vectors_have_unit_length_and_equal_prompts_equal_ones(ids: list[int]) -> None:
    vector = hashed_ngrams(pack_tokens(ids))
    assert vector.shape == (DIMENSIONS,) and vector.dtype == np.float32
    assert float(vector @ vector) == pytest.approx(1.0, abs=1e-5) or not vector.any()
    assert (hashed_ngrams(pack_tokens(ids)) == vector).all()


def test_vectors_of_similar_prompts_are_close() -> None:
    rng = random.Random(8)
    words = [rng.randrange(50_000) for _ in range(100)]
    changed = [*words[:60], 1, 2, 3, *words[63:]]
    other = [rng.randrange(50_000) for _ in range(100)]
    vector, near, far = (hashed_ngrams(pack_tokens(ids)) for ids in (words, changed, other))
    assert float(vector @ near) > 0.8
    assert abs(float(vector @ far)) < 0.4
    beginning = [rng.randrange(50_000) for _ in range(300)]
    long = hashed_ngrams(pack_tokens([*beginning, *words * (MAX_TOKENS // 100 + 1)]))
    assert (long == hashed_ngrams(pack_tokens(words * (MAX_TOKENS // 100 + 1)))).all()


def test_forecasts_lie_within_what_a_request_allows() -> None:
    forecasts = LengthForecasts(PrefixMean())
    assert forecasts.predict(prompt(1)) is None
    forecasts.finished(prompt(1), predicted=5, output_tokens=400)
    assert forecasts.predict(prompt(1)) == 400
    assert forecasts.predict(prompt(1, max_tokens=30)) == 30
    assert forecasts.accuracy().mean_absolute_error == 395


def test_without_a_predictor_the_scheduler_predicts_and_the_error_is_known() -> None:
    forecasts = LengthForecasts()
    forecasts.finished(prompt(1), predicted=50, output_tokens=40)
    forecasts.finished(prompt(1), predicted=50, output_tokens=0)
    assert forecasts.predict(prompt(1)) is None
    assert forecasts.accuracy().num_requests == 1


def test_every_name_makes_a_predictor_and_no_other_does() -> None:
    for name in LENGTH_PREDICTOR_NAMES:
        assert (make_length_predictor(name) is None) == (name == "mean")
    with pytest.raises(ConfigError, match=r"'x' is unknown; there are mean, max_tokens"):
        make_length_predictor("x")


def test_retrieval_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    with pytest.raises(ConfigError, match=r"pip install 'preble\[retrieval\]'"):
        make_length_predictor("retrieval")


pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30)


@given(pairs)
def test_rank_correlation_is_that_of_the_ranks(both: list[tuple[int, int]]) -> None:
    def ranks(values: list[int]) -> list[float]:
        """By the definition: the mean place of the equal ones in the sorted list."""
        places = sorted(values)
        return [places.index(v) + (places.count(v) - 1) / 2 for v in values]

    predicted, actual = [p for p, _ in both], [a for _, a in both]
    found = accuracy_of(predicted, actual)
    assert found.mean_absolute_error == pytest.approx(sum(abs(p - a) for p, a in both) / len(both))
    if len(set(predicted)) == 1 or len(set(actual)) == 1:
        assert found.rank_correlation is None
    else:
        expected = float(np.corrcoef(ranks(predicted), ranks(actual))[0, 1])
        assert found.rank_correlation == pytest.approx(expected, abs=1e-9)


def test_running_accuracy_is_of_the_last_thousand() -> None:
    running = RunningAccuracy()
    assert running.accuracy().mean_absolute_error is None
    for _ in range(3000):
        running.add(100, 1)
    for i in range(1000):
        running.add(i, i)
    accuracy = running.accuracy()
    assert (accuracy.num_requests, accuracy.mean_absolute_error) == (1000, 0)
    assert accuracy.rank_correlation == pytest.approx(1.0)
