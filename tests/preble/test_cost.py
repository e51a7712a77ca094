"""The cost model's formulas and its file format."""

import dataclasses
import json

import numpy as np
import pytest

from preble.cost import CostModel
from preble.errors import ConfigError

LINEAR = CostModel(
    name="toy",
    fixed=1.0,
    per_prefill_token=0.1,
    per_attention=0.001,
    per_decode=0.2,
    per_context_token=0.01,
)
LLAMA_8B = CostModel.first_principles(
    name="llama-3-8b on h100",
    parameters=8.0e9,
    layers=32,
    hidden=4096,
    kv_bytes_per_token=2 * 32 * 8 * 128 * 2,
    flops_per_second=500e12,
    bytes_per_second=2.6e12,
    weight_bytes=16e9,
    fixed=0.001,
)


def test_a_linear_step_is_the_sum_of_its_terms() -> None:
    seconds = LINEAR.step_seconds(prefill_tokens=10, attention=100, decodes=2, context_tokens=50)
    assert seconds == pytest.approx(1.0 + 1.0 + 0.1 + 0.4 + 0.5)


def test_a_roofline_step_is_bound_by_the_slower_resource() -> None:
    model = dataclasses.replace(LINEAR, roofline=True, weight_read=0.3)
    read = model.step_seconds(prefill_tokens=0, attention=0, decodes=1, context_tokens=100)
    compute = model.step_seconds(prefill_tokens=100, attention=0, decodes=1, context_tokens=100)
    assert read == pytest.approx(1.0 + 1.3)
    assert compute == pytest.approx(1.0 + 10.2)


@pytest.mark.parametrize("roofline", [False, True])
def test_further_attention_products_come_on_top(roofline: bool) -> None:
    model = dataclasses.replace(LINEAR, roofline=roofline, per_product=0.5)
    shape = {"prefill_tokens": 10, "attention": 100, "decodes": 2, "context_tokens": 50}
    added = model.step_seconds(**shape, products=3) - model.step_seconds(**shape)
    assert added == pytest.approx(1.5)
    assert LINEAR.step_seconds(**shape, products=3) == LINEAR.step_seconds(**shape)


def test_prefill_does_not_depend_on_how_it_is_cut() -> None:
    whole = LINEAR.prefill_seconds(1000.0, 0.0)
    cut = LINEAR.prefill_seconds(400.0, 0.0) + LINEAR.prefill_seconds(600.0, 400.0)
    assert whole == pytest.approx(cut)


def test_prefill_of_arrays_is_elementwise() -> None:
    cached = np.array([0.0, 500.0, 900.0])
    expected = [LINEAR.prefill_seconds(1000.0 - c, c) for c in cached.tolist()]
    assert LINEAR.prefill_seconds(1000.0 - cached, cached) == pytest.approx(expected)


def test_first_principles_are_of_the_right_size_and_say_so() -> None:
    """8B on an H100: decode alone is bandwidth bound near 7 ms, 8k of prefill near 0.3 s."""
    assert LLAMA_8B.source == "first principles"
    assert 0.005 < LLAMA_8B.decode_seconds(1000, 1) < 0.010
    assert 0.2 < LLAMA_8B.prefill_seconds(8192.0, 0.0) < 0.5
    assert LLAMA_8B.decode_seconds(1000, 64) < LLAMA_8B.decode_seconds(1000, 1) / 10


def test_json_is_exact_both_ways() -> None:
    assert CostModel.from_json(LLAMA_8B.to_json()) == LLAMA_8B


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fixed": -1.0}, "fixed is -1.0"),
        ({"per_decode": float("nan")}, "per_decode is nan"),
        ({"per_decode": "fast"}, "per_decode"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_file_is_refused_by_field(change: dict[str, object], says: str) -> None:
    text = json.dumps({**json.loads(LINEAR.to_json()), **change})
    with pytest.raises(ConfigError, match=says):
        CostModel.from_json(text, where="toy.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "{}"])
def test_what_is_no_cost_model_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"toy\.json"):
        CostModel.from_json(text, where="toy.json")
