"""The workloads against the figures that were published of the data sets they imitate.

Published means arXiv 2407.00023, table 1. Hit shares have no published target: theirs are those of
an independent implementation of the same distributions.

One sample tells little where tails are heavy: what 320 problems of the workload programming have
in common hangs on the few dozen that are popular, and the mean of their prompts varies by 6 % from
seed to seed. So each figure is the mean over `SEEDS`. It may miss the published one by what the
distributions are known to be off (`Figures.allowance`, and constants below), and by `ERRORS`
standard errors of that mean, estimated from the very seeds.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from preble_loadgen.analysis import Analysis, analyze
from preble_loadgen.workloads import WorkloadOptions, make_workload

SEEDS = (7, 8, 9, 10, 11)
ERRORS = 3.0
LARGEST_ERROR = 0.15
"""Of a figure's mean, relative to it: with more, the test would hold for anything."""


@dataclass(frozen=True)
class Figures:
    """Mean and standard deviation where there are two; percent where shares.

    Attributes:
        allowance: by how much the standard deviation of prompts is off, as a share of it.
    """

    options: WorkloadOptions
    prompt: tuple[float, float]
    output: tuple[float, float]
    shared: float
    key_portion: float
    requests_per_key: float
    ideal: float
    random: tuple[float, float, float, float]
    allowance: float = 0.1


FIGURES = {
    "tool_use": Figures(
        WorkloadOptions(requests=4000),
        prompt=(1835, 742),
        output=(43, 16),
        shared=88,
        key_portion=76,
        requests_per_key=39,
        ideal=81.5,
        random=(73.0, 67.7, 60.9, 44.0),
    ),
    "embodied_agent": Figures(
        WorkloadOptions(prefixes=60),
        prompt=(2285, 471),
        output=(16, 13),
        shared=97,
        key_portion=76,
        requests_per_key=48,
        ideal=97.3,
        random=(89.4, 79.6, 63.2, 26.2),
        allowance=0.2,
    ),
    "programming": Figures(
        WorkloadOptions(requests=5600, prefixes=320),
        prompt=(3871, 1656),
        output=(190, 343),
        shared=97,
        key_portion=78,
        requests_per_key=126,
        ideal=97.6,
        random=(93.2, 89.0, 84.1, 73.5),
        allowance=0.2,
    ),
    "video_qa": Figures(
        WorkloadOptions(prefixes=250),
        prompt=(9865, 5976),
        output=(4.2, 1.5),  # An answer of 3.2 and its end; 4 as rounded in the table.
        shared=100,
        key_portion=99,
        requests_per_key=8.6,
        ideal=88.0,
        random=(57.7, 37.0, 21.3, 6.1),
    ),
    "long_documents": Figures(
        WorkloadOptions(prefixes=105),
        prompt=(23_474, 6105),
        output=(16, 9.9),
        shared=100,
        key_portion=100,
        requests_per_key=18,
        ideal=94.5,
        random=(78.4, 61.7, 41.9, 14.7),
    ),
}


@dataclass(frozen=True)
class Measured:
    """A workload drawn with every seed."""

    expected: Figures
    found: Sequence[Analysis]

    def agrees(
        self, figure: Callable[[Analysis], float], published: float, *, allowance: float
    ) -> None:
        """Asserts it of the mean over the seeds.

        Args:
            allowance: by how much the distributions are off, in the figure's unit.
        """
        values = [figure(analysis) for analysis in self.found]
        mean = statistics.mean(values)
        error = statistics.stdev(values) / math.sqrt(len(values))
        assert error <= LARGEST_ERROR * mean, values
        assert mean == pytest.approx(published, abs=allowance + ERRORS * error), values


@pytest.fixture(scope="module", params=FIGURES)
def measured(request: pytest.FixtureRequest) -> Measured:
    expected = FIGURES[request.param]
    drawn = [replace(expected.options, seed=seed) for seed in SEEDS]
    return Measured(expected, [analyze(make_workload(request.param, o).requests) for o in drawn])


def test_lengths(measured: Measured) -> None:
    expected = measured.expected
    mean, sd = expected.prompt
    measured.agrees(lambda found: found.prompt_tokens.mean, mean, allowance=0.04 * mean)
    measured.agrees(lambda found: found.prompt_tokens.sd, sd, allowance=expected.allowance * sd)
    mean, sd = expected.output
    measured.agrees(lambda found: found.output_tokens.mean, mean, allowance=0.04 * mean)
    measured.agrees(lambda found: found.output_tokens.sd, sd, allowance=0.08 * sd)


def test_sharing(measured: Measured) -> None:
    expected = measured.expected
    measured.agrees(lambda found: found.sharing.shared_percent.mean, expected.shared, allowance=3.1)
    measured.agrees(
        lambda found: found.key_portions.portion_percent.mean, expected.key_portion, allowance=2
    )
    measured.agrees(
        lambda found: found.key_portions.requests_per_key.mean,
        expected.requests_per_key,
        allowance=0.1 * expected.requests_per_key,
    )


def test_hit_shares(measured: Measured) -> None:
    expected = measured.expected
    measured.agrees(
        lambda found: 100 * found.sharing.ideal_hit_share, expected.ideal, allowance=1.2
    )
    for index, share in enumerate(expected.random):
        measured.agrees(
            lambda found, index=index: 100 * list(found.sharing.random_hit_shares.values())[index],
            share,
            allowance=1.5,
        )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "prefixes"), [("video_qa", 150), ("long_documents", 100)])
def test_singles_make_the_published_share(name: str, prefixes: int, seed: int) -> None:
    """88 (32) and 91 (24) percent of a prompt are shared in the data, 100 without singles."""
    options = WorkloadOptions(prefixes=prefixes, variants=frozenset({"singles"}), seed=seed)
    shared = analyze(make_workload(name, options).requests).sharing.shared_percent
    assert shared.mean == pytest.approx(89.5, abs=2.5)
    assert shared.sd == pytest.approx(30, abs=3)


def test_tool_use_quantiles() -> None:
    """Of the data: quartiles 1,265, 1,659 and 2,265, none over 4,096. Ours average within 12 %."""
    options = [WorkloadOptions(requests=5000, seed=seed) for seed in SEEDS]
    drawn = [
        analyze(make_workload("tool_use", o).requests).prompt_tokens.quantiles for o in options
    ]
    assert all(quantiles["max"] <= 4096 for quantiles in drawn)
    for name, published in (("p25", 1265), ("p50", 1659), ("p75", 2265)):
        mean = statistics.mean(quantiles[name] for quantiles in drawn)
        assert mean == pytest.approx(published, rel=0.12)
