"""Durations out of rounds at changing pace."""

import numpy as np
import pytest

from preble_loadgen.steady import round_paces, steady_seconds

TRUE = np.array([2e-3, 5e-3, 30e-3, 0.1, 3e-3])


def test_steps_are_what_they_were_where_nothing_disturbs() -> None:
    assert steady_seconds(np.tile(TRUE, (3, 1))) == pytest.approx(TRUE)
    assert steady_seconds(TRUE[None]) == pytest.approx(TRUE)


def test_a_round_at_another_pace_changes_no_step() -> None:
    """All at the pace of the middle round, none at that of the slowest or the fastest."""
    paces = np.array([1.0, 1.5, 0.8, 1.0, 1.2])
    seconds = paces[:, None] * TRUE
    assert round_paces(seconds) == pytest.approx(paces)
    assert steady_seconds(seconds) == pytest.approx(TRUE)


def test_one_step_that_is_disturbed_in_some_rounds_does_not_show() -> None:
    seconds = np.tile(TRUE, (8, 1))
    seconds[[1, 4, 6], 2] *= 3.0
    assert steady_seconds(seconds) == pytest.approx(TRUE)
