"""Production's router and workers in virtual time: nothing is lost, whatever goes wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vopr.mutants import MUTANTS, hunt
from vopr.regressions import REGRESSIONS, Regression
from vopr.world import run_seed

TESTS = Path(__file__).parents[1]
SEEDS_PER_TEST = 10


@pytest.mark.parametrize("first", range(0, 200, SEEDS_PER_TEST))
def test_every_invariant_holds(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        verdict = run_seed(seed)
        assert not verdict.violation, f"make vopr SEED={seed}: {verdict.violation}"


@pytest.mark.parametrize("regression", REGRESSIONS, ids=lambda each: each.life.seed)
def test_bugs_of_the_past_are_gone(regression: Regression) -> None:
    assert not regression.live().violation


@pytest.mark.parametrize("regression", REGRESSIONS, ids=lambda each: each.life.seed)
def test_a_bug_of_the_past_would_be_found_again(regression: Regression) -> None:
    patcher = MUTANTS[regression.mutant]()
    try:
        assert regression.live().violation
    finally:
        patcher.stop()


def test_a_seed_runs_the_same_way_in_every_process() -> None:
    code = "from vopr.world import run_seed; print(*(run_seed(s).digest for s in (2, 7, 15)))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=TESTS,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(set(digests.pop().split())) == 3


@pytest.mark.parametrize("mutant", ["old_attempts_are_not_fenced_off", "silence_is_not_noticed"])
def test_planted_bugs_are_found(mutant: str) -> None:
    found = hunt((mutant, 60))
    assert found.found_by
