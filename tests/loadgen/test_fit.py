"""Fitting cost models: the solver against the conditions of an optimum, the forms against truth."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preble.cost import CostModel
from preble_loadgen.fit import (
    WORST_ERROR_MAX,
    MeasuredStep,
    fit_both,
    fit_linear,
    fit_roofline,
    non_negative_least_squares,
)

LINEAR = CostModel(
    name="truth",
    fixed=2e-3,
    per_prefill_token=3e-5,
    per_attention=5e-8,
    per_decode=1e-4,
    per_context_token=6e-7,
    per_product=4e-4,
)
ROOFLINE = CostModel(
    name="truth",
    fixed=1e-3,
    per_prefill_token=3e-5,
    per_attention=4e-9,
    per_decode=3e-5,
    per_context_token=5e-8,
    weight_read=6e-3,
    roofline=True,
)
TERMS = ("per_prefill_token", "per_attention", "per_decode", "per_context_token", "per_product")


def steps_of(truth: CostModel, *, noise: float = 0.0, seed: int = 0) -> list[MeasuredStep]:
    """Steps of all kinds that take as long as `truth` says, times a random factor."""
    rng = random.Random(seed)
    steps = []
    for _ in range(80):
        new = rng.choice((0, rng.randrange(16, 512), rng.randrange(16, 2048)))
        decodes = rng.choice((1, 4, 16, 64) if not new else (0, 0, 4, 32))
        step = MeasuredStep(
            kind="mixed" if new and decodes else "prefill" if new else "decode",
            prefill_tokens=new,
            attention=new * (rng.randrange(4096) + new / 2),
            decodes=decodes,
            context_tokens=decodes * rng.randrange(32, 4096),
            seconds=1.0,
            products=rng.randrange(4),
        )
        factor = 1.0 + rng.uniform(-noise, noise)
        steps.append(replace(step, seconds=step.predicted(truth) * factor))
    return steps


# The solver


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 5), rows=st.integers(1, 12))
def test_the_solution_meets_the_conditions_of_an_optimum(
    seed: int, columns: int, rows: int
) -> None:
    """Nothing is negative, no positive entry wants to move, no zero wants to grow."""
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    x = non_negative_least_squares(matrix, target)
    gradient = matrix.T @ (matrix @ x - target)
    assert (x >= 0.0).all()
    assert gradient == pytest.approx(np.maximum(gradient, 0.0), abs=1e-7)
    assert (gradient * x) == pytest.approx(np.zeros(columns), abs=1e-7)


def test_no_point_of_a_fine_grid_is_better() -> None:
    rng = np.random.default_rng(3)
    matrix, target = rng.normal(size=(9, 3)), rng.normal(size=9)
    x = non_negative_least_squares(matrix, target)
    ticks = np.linspace(0.0, 2.0, 41)
    grid = np.stack(np.meshgrid(ticks, ticks, ticks), axis=-1).reshape(-1, 3)
    errors = ((grid @ matrix.T - target) ** 2).sum(axis=1)
    assert ((matrix @ x - target) ** 2).sum() <= errors.min() + 1e-12


def test_columns_of_very_different_sizes_are_all_found() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.uniform(size=(40, 4)) * np.array([1.0, 1e3, 1e7, 1e-4])
    truth = np.array([2e-3, 3e-5, 5e-11, 7.0])
    assert non_negative_least_squares(matrix, matrix @ truth) == pytest.approx(truth, rel=1e-6)


# The forms


def assert_same(found: CostModel, truth: CostModel, *, rel: float) -> None:
    for term in TERMS:
        assert getattr(found, term) == pytest.approx(getattr(truth, term), rel=rel), term


def test_a_linear_truth_is_recovered() -> None:
    found = fit_linear(steps_of(LINEAR))
    assert_same(found, LINEAR, rel=1e-6)
    assert found.fixed == pytest.approx(LINEAR.fixed, rel=1e-6)
    assert not found.roofline


def test_a_roofline_truth_is_recovered() -> None:
    found = fit_roofline(steps_of(ROOFLINE))
    assert found.roofline
    assert_same(found, ROOFLINE, rel=1e-6)
    assert found.fixed == pytest.approx(ROOFLINE.fixed, rel=1e-6)
    assert found.weight_read == pytest.approx(ROOFLINE.weight_read, rel=1e-6)


@pytest.mark.parametrize(("truth", "form"), [(LINEAR, "linear"), (ROOFLINE, "roofline")])
def test_the_form_that_is_true_wins_and_forgives_noise(truth: CostModel, form: str) -> None:
    better, other = fit_both(steps_of(truth, noise=0.04), name="mine", source="measured here")
    assert (better.form, other.form) == (form, "linear" if form == "roofline" else "roofline")
    assert better.worst_error <= other.worst_error
    assert better.is_usable
    assert (better.cost.name, better.cost.source) == ("mine", "measured here")
    for step in steps_of(truth, seed=1):
        assert abs(step.error(better.cost)) < 0.08


def test_an_engine_without_extra_products_is_given_none() -> None:
    truth = replace(LINEAR, per_product=0.0)
    better, _ = fit_both(steps_of(truth), name="", source="")
    assert better.cost.per_product == pytest.approx(0.0, abs=1e-9)
    assert better.form == "linear"
    assert_same(better.cost, truth, rel=1e-6)


def test_the_worst_step_counts_more_than_by_least_squares() -> None:
    """One step in forty is slow: a fit by squares would give it up, ours comes to meet it."""
    steps = steps_of(LINEAR, noise=0.02, seed=3)
    slow = max(range(len(steps)), key=lambda i: steps[i].context_tokens)
    steps[slow] = replace(steps[slow], seconds=1.4 * steps[slow].seconds)
    columns = np.array(
        [
            (1.0, s.products, s.prefill_tokens, s.attention, s.decodes, s.context_tokens)
            for s in steps
        ]
    )
    relative = columns / np.array([[s.seconds] for s in steps])
    by_squares = relative @ non_negative_least_squares(relative, np.ones(len(steps))) - 1.0
    ours = max(abs(step.error(fit_linear(steps))) for step in steps)
    assert ours < np.abs(by_squares).max() - 0.01


def test_noise_that_no_coefficients_explain_makes_a_fit_unusable() -> None:
    better, _ = fit_both(steps_of(LINEAR, noise=0.6), name="", source="")
    assert better.worst_error > WORST_ERROR_MAX
    assert not better.is_usable


def test_what_judges_a_fit_was_not_fitted() -> None:
    """Held-out steps that lie do not bend the coefficients, and do show."""
    steps = steps_of(LINEAR)
    better, _ = fit_both(steps, name="", source="")
    assert len(better.held_out) == len(steps) // 4
    assert {*better.held_out, *better.steps} == set(steps)
    assert len(better.held_out) + len(better.steps) == len(steps)
    lying = [replace(s, seconds=2 * s.seconds) if s in better.held_out else s for s in steps]
    fits = {fit.form: fit for fit in fit_both(lying, name="", source="")}
    assert_same(fits["linear"].cost, LINEAR, rel=1e-6)
    assert fits["linear"].worst_error == pytest.approx(0.5, rel=1e-6)
    assert not fits["linear"].is_usable


def test_coefficients_are_never_negative() -> None:
    steps = steps_of(LINEAR, noise=0.9, seed=5)
    for cost in (fit_linear(steps), fit_roofline(steps)):
        assert min(getattr(cost, term) for term in (*TERMS, "fixed", "weight_read")) >= 0.0


def test_r_squared_is_the_share_of_variance_explained() -> None:
    better, _ = fit_both(steps_of(LINEAR, noise=0.1), name="", source="")
    every = (*better.steps, *better.held_out)
    assert better.r_squared == pytest.approx(r_squared(better.cost, every))
    assert 0.9 < better.r_squared < 1.0


def r_squared(cost: CostModel, steps: Sequence[MeasuredStep]) -> float:
    mean = sum(step.seconds for step in steps) / len(steps)
    left = sum((step.seconds - step.predicted(cost)) ** 2 for step in steps)
    return 1.0 - left / sum((step.seconds - mean) ** 2 for step in steps)


def test_what_no_step_has_costs_nothing() -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        matrix = rng.uniform(0.0, 1e-3, (30, 8))
        matrix[:, [1, 4]] = 0.0
        target = matrix @ rng.uniform(0.0, 2.0, 8) * rng.uniform(0.9, 1.1, 30)
        found = non_negative_least_squares(matrix, target)
        assert found[1] == found[4] == 0.0
