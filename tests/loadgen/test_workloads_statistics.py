"""The workloads against the figures that were published of the data sets they imitate.

Published means arXiv 2407.00023, table 1. Hit shares have no published target: theirs are those of
an independent implementation of the same distributions. Samples are small, and some distributions
have heavy tails (programming's problem lengths most of all), hence the tolerances.
"""

from dataclasses import dataclass

import pytest

from preble_loadgen.analysis import Analysis, analyze
from preble_loadgen.workloads import WorkloadOptions, make_workload


@dataclass(frozen=True)
class Figures:
    """Mean and standard deviation where there are two; percent where shares."""

    options: WorkloadOptions
    prompt: tuple[float, float]
    output: tuple[float, float]
    shared: float
    key_portion: float
    requests_per_key: float
    ideal: float
    random: tuple[float, float, float, float]
    tolerance: float = 0.06


SEED = 8
FIGURES = {
    "tool_use": Figures(
        WorkloadOptions(requests=20_000, seed=SEED),
        prompt=(1835, 742),
        output=(43, 16),
        shared=88,
        key_portion=76,
        requests_per_key=39,
        ideal=81.5,
        random=(73.0, 67.7, 60.9, 44.0),
    ),
    "embodied_agent": Figures(
        WorkloadOptions(prefixes=156, seed=SEED),
        prompt=(2285, 471),
        output=(16, 13),
        shared=97,
        key_portion=76,
        requests_per_key=48,
        ideal=97.3,
        random=(89.4, 79.6, 63.2, 26.2),
    ),
    "programming": Figures(
        WorkloadOptions(requests=5600, prefixes=320, seed=SEED),
        prompt=(3871, 1656),
        output=(190, 343),
        shared=97,
        key_portion=78,
        requests_per_key=126,
        ideal=97.6,
        random=(93.2, 89.0, 84.1, 73.5),
        tolerance=0.16,
    ),
    "video_qa": Figures(
        WorkloadOptions(prefixes=1000, seed=SEED),
        prompt=(9865, 5976),
        output=(4.2, 1.5),  # An answer of 3.2 and its end; 4 as rounded in the table.
        shared=100,
        key_portion=99,
        requests_per_key=8.6,
        ideal=88.0,
        random=(57.7, 37.0, 21.3, 6.1),
    ),
    "long_documents": Figures(
        WorkloadOptions(prefixes=105, seed=SEED),
        prompt=(23_474, 6105),
        output=(16, 9.9),
        shared=100,
        key_portion=100,
        requests_per_key=18,
        ideal=94.5,
        random=(78.4, 61.7, 41.9, 14.7),
    ),
}


@pytest.fixture(scope="module", params=FIGURES)
def measured(request: pytest.FixtureRequest) -> tuple[Figures, Analysis]:
    expected = FIGURES[request.param]
    return expected, analyze(make_workload(request.param, expected.options).requests)


def test_lengths(measured: tuple[Figures, Analysis]) -> None:
    expected, found = measured
    mean, sd = expected.prompt
    assert found.prompt_tokens.mean == pytest.approx(mean, rel=expected.tolerance)
    assert found.prompt_tokens.sd == pytest.approx(sd, rel=0.2)
    mean, sd = expected.output
    assert found.output_tokens.mean == pytest.approx(mean, rel=0.06)
    assert found.output_tokens.sd == pytest.approx(sd, rel=0.12)


def test_sharing(measured: tuple[Figures, Analysis]) -> None:
    expected, found = measured
    assert found.sharing.shared_percent.mean == pytest.approx(expected.shared, abs=3.5)
    portions = found.key_portions
    assert portions.portion_percent.mean == pytest.approx(expected.key_portion, abs=4)
    assert portions.requests_per_key.mean == pytest.approx(expected.requests_per_key, rel=0.15)


def test_hit_shares(measured: tuple[Figures, Analysis]) -> None:
    expected, found = measured
    assert 100 * found.sharing.ideal_hit_share == pytest.approx(expected.ideal, abs=1.5)
    shares = [100 * share for share in found.sharing.random_hit_shares.values()]
    assert shares == pytest.approx(list(expected.random), abs=2.5)


@pytest.mark.parametrize(("name", "prefixes"), [("video_qa", 500), ("long_documents", 100)])
def test_singles_make_the_published_share(name: str, prefixes: int) -> None:
    """88 (32) and 91 (24) percent of a prompt are shared in the data, 100 without singles."""
    options = WorkloadOptions(prefixes=prefixes, variants=frozenset({"singles"}), seed=SEED)
    shared = analyze(make_workload(name, options).requests).sharing.shared_percent
    assert shared.mean == pytest.approx(89.5, abs=2.5)
    assert shared.sd == pytest.approx(30, abs=3)


def test_tool_use_quantiles() -> None:
    """Of the data: quartiles 1,265, 1,659 and 2,265, none over 4,096."""
    trace = make_workload("tool_use", WorkloadOptions(requests=5000, seed=SEED))
    quantiles = analyze(trace.requests).prompt_tokens.quantiles
    assert quantiles["max"] <= 4096
    quartiles = [quantiles[name] for name in ("p25", "p50", "p75")]
    assert quartiles == pytest.approx([1265, 1659, 2265], rel=0.12)
