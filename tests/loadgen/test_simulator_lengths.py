"""Predicted output lengths in simulations: the oracle, the limit that is stated, and attempts."""

import math
from dataclasses import replace

import numpy as np
import pytest
from simulator_helpers import load, options, run

from preble.errors import ConfigError
from preble_loadgen.report import summarize
from preble_loadgen.simulator.lengths import oracle_length


def test_the_oracle_knows_the_length_and_its_noise_is_seeded() -> None:
    requests = [replace(request, output_tokens=10_000) for request in load(2000)]
    assert {oracle_length(request, noise=0.0, seed=1) for request in requests} == {10_000}
    noisy = [oracle_length(request, noise=0.5, seed=1) for request in requests]
    assert noisy == [oracle_length(request, noise=0.5, seed=1) for request in requests]
    assert noisy != [oracle_length(request, noise=0.5, seed=2) for request in requests]
    logarithms = np.log(np.array(noisy) / 10_000)
    assert float(logarithms.std()) == pytest.approx(0.5, rel=0.05)
    assert float(logarithms.mean()) == pytest.approx(0.0, abs=0.05)


def test_oracles_are_as_good_as_their_noise_is_small() -> None:
    requests = load(80)
    ranks = []
    for noise in (0.0, 0.5, 2.0):
        result = run(requests, length_predictor="oracle", length_noise=noise)
        lengths = summarize(result.records).lengths
        assert lengths.num_requests == 80 and lengths.rank_correlation is not None
        ranks.append(lengths.rank_correlation)
        if not noise:
            assert lengths.mean_absolute_error == 0
    assert ranks[0] == pytest.approx(1.0)
    assert 1.0 > ranks[1] > ranks[2] > 0.0


@pytest.mark.parametrize("name", ["mean", "max_tokens", "prefix_mean", "retrieval"])
def test_equal_runs_predict_equally_and_no_more_than_is_stated(name: str) -> None:
    first, again = (run(load(60), length_predictor=name, max_tokens=40) for _ in range(2))
    assert first.digest == again.digest
    predicted = {r.index: r.predicted_output_tokens for r in first.records}
    assert predicted == {r.index: r.predicted_output_tokens for r in again.records}
    for record in first.records:
        tokens = record.predicted_output_tokens
        assert tokens is not None and 1 <= tokens <= max(40, record.expected_output_tokens)
        assert record.output_tokens == record.expected_output_tokens, "limits end no answer here"


def test_a_request_that_moves_keeps_its_prediction() -> None:
    faults, requests = ["death:0@1+3"], load(100, rate=50.0)
    result = run(requests, length_predictor="oracle", length_noise=1.0, faults=faults)
    assert result.num_retries > 0
    for record in result.records:
        expected = oracle_length(requests[record.index], noise=1.0, seed=0)
        assert record.predicted_output_tokens == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length_predictor": "x"}, "'x' is unknown; there are mean, max_tokens"),
        ({"length_noise": -1.0}, "length_noise must be at least 0, not -1"),
        ({"length_noise": math.nan}, "length_noise must be at least 0"),
        ({"max_tokens": -1}, "max_tokens must be at least 0"),
    ],
)
def test_options_are_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**fields).check()
