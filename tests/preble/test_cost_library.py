"""The cost models that come with Preble, and where their numbers come from."""

import json
from pathlib import Path

import pytest

from preble.cost_library import (
    cost_model_names,
    known_cost_model,
    kv_capacity_tokens,
    load_cost_model,
    write_estimates,
)
from preble.errors import ConfigError
from preble.first_principles import (
    A6000,
    H100,
    H100_X4,
    LLAMA_3_8B,
    LLAMA_3_70B,
    MISTRAL_7B,
    OPT_13B,
    PAIRS,
    QWEN3_0_6B,
    QWEN3_8B,
    DecoderShape,
    estimated_cost,
    estimated_kv_tokens,
)

COMMITTED = Path(__file__).parents[2] / "preble" / "cost_models"


def test_the_committed_files_are_what_first_principles_give(tmp_path: Path) -> None:
    written = write_estimates(tmp_path)
    assert len(written) == len(PAIRS) == 11
    for path in written:
        assert path.read_text() == (COMMITTED / path.name).read_text(), path.name


def test_every_file_has_a_name_and_says_where_it_is_from() -> None:
    names = cost_model_names()
    assert sorted(path.stem for path in COMMITTED.glob("*.json")) == list(names)
    for name in names:
        source = load_cost_model(name).source
        assert source == "first principles" if name in PAIRS else "measured" in source


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        (LLAMA_3_8B, 8.03),
        (LLAMA_3_70B, 70.6),
        (MISTRAL_7B, 7.24),
        (QWEN3_8B, 8.19),
        (OPT_13B, 12.85),
    ],
)
def test_sizes_are_the_published_ones(model: DecoderShape, billions: float) -> None:
    assert model.parameters == pytest.approx(billions * 1e9, rel=2e-3)


def test_a_tied_head_is_kept_once_and_still_multiplied_with() -> None:
    assert QWEN3_0_6B.parameters == QWEN3_0_6B.multiplied_parameters
    assert QWEN3_0_6B.parameters == pytest.approx(0.596e9, rel=2e-3)


def test_known_capacities_are_of_the_right_size() -> None:
    """By hand: 0.9 · (85.5 GB - 16.1 GB) / 128 KiB, and the same for four GPUs and 141 GB."""
    assert estimated_kv_tokens(LLAMA_3_8B, H100) == pytest.approx(477_000, rel=0.01)
    assert estimated_kv_tokens(LLAMA_3_70B, H100_X4) == pytest.approx(552_000, rel=0.01)
    assert kv_capacity_tokens("llama-3-8b-h100") == estimated_kv_tokens(LLAMA_3_8B, H100)
    assert 0 < kv_capacity_tokens("mistral-7b-a6000") < kv_capacity_tokens("mistral-7b-h100")


def test_tensor_parallel_is_faster_by_less_than_its_gpus_and_pays_per_step() -> None:
    one, four = estimated_cost(LLAMA_3_70B, H100), estimated_cost(LLAMA_3_70B, H100_X4)
    assert 3.0 < one.per_prefill_token / four.per_prefill_token < 4.0
    assert one.weight_read / four.weight_read == pytest.approx(4.0)
    assert four.fixed > one.fixed


def test_a_slower_device_is_slower_in_every_term() -> None:
    slow, fast = estimated_cost(QWEN3_8B, A6000), estimated_cost(QWEN3_8B, H100)
    for term in ("per_prefill_token", "per_attention", "per_context_token", "weight_read"):
        assert getattr(slow, term) > 2 * getattr(fast, term)


def test_a_path_is_loaded_too(tmp_path: Path) -> None:
    cost = load_cost_model("qwen3-8b-a6000")
    path = tmp_path / "mine.json"
    path.write_text(cost.to_json())
    assert load_cost_model(path) == load_cost_model(str(path)) == cost


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"cannot read llama-9: .* one of .*llama-3-8b-h100"):
        load_cost_model("llama-9")
    with pytest.raises(ConfigError, match=r"no KV capacity .*'llama-9'.*llama-3-8b-h100"):
        kv_capacity_tokens("llama-9")


def test_a_file_that_is_none_is_refused_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine"}))
    with pytest.raises(ConfigError, match=r"mine\.json: not a cost model"):
        load_cost_model(path)


def test_models_nobody_measured_are_not_known() -> None:
    assert known_cost_model("nobody/has-this", "cpu") is None
    assert known_cost_model("llama-3-8b", "h100") == load_cost_model("llama-3-8b-h100")


def test_the_demo_model_on_a_cpu_is_measured() -> None:
    cost = known_cost_model("demo", "cpu")
    assert cost is not None and cost.source.startswith("measured ")
    assert cost.per_product > 0.0
    with pytest.raises(ConfigError, match="no KV capacity"):
        kv_capacity_tokens("demo-cpu")
