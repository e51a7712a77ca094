"""What the torch engine makes of a directory and options, and how it refuses."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch_helpers import TINY, load, save_model, worker_config

from preble.cost import CostModel
from preble.cost_library import load_cost_model
from preble.errors import ConfigError
from preble_deploy.demo_model import make_demo_model
from preble_worker import torch_engine
from preble_worker.torch_engine import load_torch_engine


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return make_demo_model(tmp_path / "demo")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def test_defaults_fit_the_model_and_the_cpu(demo: Path) -> None:
    loaded = load(demo)
    assert loaded.name == "torch"
    assert loaded.vocab_size == 1024
    assert loaded.scheduler.num_pages * loaded.scheduler.page_tokens == 32_768
    assert loaded.scheduler.max_batch_tokens == 512
    assert loaded.scheduler.context_tokens == 8192
    eos = json.loads((demo / "generation_config.json").read_text())["eos_token_id"]
    assert list(loaded.scheduler.eos_token_ids) == eos
    assert loaded.cost.source == "first principles"
    assert loaded.cost.prefill_seconds(512.0, 0.0) > 0


def test_options_are_followed(demo: Path) -> None:
    loaded = load(
        demo,
        kv_cache_tokens=1000,
        page_tokens=8,
        max_batch_tokens=64,
        max_sequences=5,
        context_tokens=500,
        policy="fcfs",
        prefix_caching=False,
    )
    scheduler = loaded.scheduler
    assert (scheduler.num_pages, scheduler.page_tokens) == (125, 8)
    assert (scheduler.max_batch_tokens, scheduler.max_sequences) == (64, 5)
    assert (scheduler.context_tokens, scheduler.policy) == (500, "fcfs")
    assert scheduler.prefix_caching is False


def test_context_is_no_longer_than_the_cache(demo: Path) -> None:
    assert load(demo, kv_cache_tokens=800).scheduler.context_tokens == 800


def test_a_measured_cost_model_is_kept(demo: Path) -> None:
    cost = CostModel(
        name="mine",
        fixed=1.0,
        per_prefill_token=1.0,
        per_attention=0.0,
        per_decode=1.0,
        per_context_token=0.0,
    )
    assert load_torch_engine(worker_config(demo), cost=cost).cost is cost


def test_what_is_known_of_the_model_on_the_device_comes_before_first_principles(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def known(model: str, device: str) -> CostModel:
        asked.append((model, device))
        return load_cost_model("qwen3-8b-a6000")

    monkeypatch.setattr(torch_engine, "known_cost_model", known)
    assert load(demo, device="auto").cost == load_cost_model("qwen3-8b-a6000")
    assert asked == [("tiny", "cuda" if torch.cuda.is_available() else "cpu")]


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [({"eos_token_id": 7}, {}, (7,)), ({}, {"eos_token_id": [3, 4]}, (3, 4)), ({}, {}, ())],
)
def test_end_tokens(
    demo: Path, generation: dict[str, Any], config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    (demo / "generation_config.json").write_text(json.dumps(generation))
    edit(demo / "config.json", lambda value: (value.pop("eos_token_id"), value.update(config)))
    assert load(demo).scheduler.eos_token_ids == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_tokens": 8193}, "context_tokens is 8193, the model allows at most 8192"),
        ({"dtype": "int4"}, "dtype is 'int4', must be auto or one of float32"),
        ({"device": "tpu"}, "device is 'tpu', must be auto, cpu, cuda or cuda:N"),
        ({"device": "cpu:x"}, "device is 'cpu:x'"),
        ({"kv_cache_tokens": 15}, "room for no page"),
    ],
)
def test_options_that_cannot_be(demo: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(demo, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(demo: Path) -> None:
    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        load(demo, device="cuda:0")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "not a JSON object")])
def test_broken_config(demo: Path, text: str, message: str) -> None:
    (demo / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(demo)


def test_config_without_a_size(demo: Path) -> None:
    edit(demo / "config.json", lambda value: value.pop("num_attention_heads"))
    with pytest.raises(ConfigError, match="num_attention_heads"):
        load(demo)


def test_quantized_weights_are_refused(demo: Path) -> None:
    edit(demo / "config.json", lambda v: v.update(quantization_config={"quant_method": "awq"}))
    with pytest.raises(ConfigError, match=r"quantized weights \(awq\)"):
        load(demo)


def test_no_weights(demo: Path) -> None:
    (demo / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no model weights"):
        load(demo)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_pickled_weights_are_named_and_not_read(demo: Path, name: str, architecture: str) -> None:
    (demo / "model.safetensors").unlink()
    torch.save(Bomb(demo / "exploded"), demo / name)
    edit(demo / "config.json", lambda value: value.update(architectures=[architecture]))
    with pytest.raises(ConfigError, match=f"{name}, a format that can run code"):
        load(demo)
    assert not (demo / "exploded").exists()


def test_code_in_the_checkpoint_is_not_run(demo: Path) -> None:
    evil = "import os\nos.mkdir({!r})\nclass Model: pass\nclass Config: pass\n"
    (demo / "modeling_own.py").write_text(evil.format(str(demo / "exploded")))
    code = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    edit(
        demo / "config.json",
        lambda value: value.update(architectures=["Own"], model_type="own", auto_map=code),
    )
    with pytest.raises(ConfigError, match="transformers cannot load it"):
        load(demo)
    assert not (demo / "exploded").exists()


def test_file_that_is_no_safetensors(demo: Path) -> None:
    (demo / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors: not a safetensors file"):
        load(demo)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "gone.safetensors"}}, r"names gone\.safetensors, which is not there"),
        ({"weight_map": {"a": "../secret"}}, "not a file beside it"),
        ({"weight_map": 3}, "not an index"),
        ([], "not an index"),
    ],
)
def test_broken_index(demo: Path, index: Any, message: str) -> None:
    (demo / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=message):
        load(demo)


NORM = "model.layers.2.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), f"no tensor {NORM}"),
        (lambda w: w.update({NORM: torch.ones(3)}), rf"{NORM} has shape \(3,\).*makes it \(128,\)"),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(128)}),
            "1 tensors have no place .* first is model.layers.0.self_attn.q_proj.bias",
        ),
    ],
)
def test_weights_that_are_not_the_configs(demo: Path, change: Any, message: str) -> None:
    edit_weights(demo, change)
    with pytest.raises(ConfigError, match=message):
        load(demo)


def test_derived_tensors_of_old_checkpoints_are_left_out(demo: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(demo, lambda weights: weights.update({name: torch.ones(16)}))
    assert load(demo).vocab_size == 1024


SMALL = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: transformers.BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=2),
            "BloomForCausalLM cannot be served: its forward takes no position_ids",
        ),
        (
            lambda: transformers.MambaConfig(**SMALL, state_size=8, max_position_embeddings=64),
            "MambaForCausalLM cannot be served",
        ),
        (
            lambda: transformers.Gemma2Config(
                **SMALL,
                intermediate_size=64,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
                attn_logit_softcapping=0.5,
            ),
            "Gemma2Attention cannot be served: it needs softcap",
        ),
    ],
)
def test_models_that_cannot_be_paged_are_refused(
    tmp_path: Path, config: Callable[[], Any], message: str
) -> None:
    """Better no answer than a wrong one."""
    save_model(config(), tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, context_tokens=64)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "short_factor": [1.0] * 8,
    "long_factor": [3.0] * 8,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"rope_parameters": LONGROPE}, "rope_type longrope"),
    ],
)
def test_what_the_decoder_lacks_goes_to_transformers(
    tmp_path: Path, change: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(transformers.LlamaConfig(**(TINY | change)), tmp_path)
    assert load(tmp_path, context_tokens=256).scheduler.context_tokens == 256
    assert reason in caplog.text


def test_rotation_that_changes_with_the_batch_is_refused(tmp_path: Path) -> None:
    save_model(transformers.LlamaConfig(**(TINY | {"rope_parameters": LONGROPE})), tmp_path)
    with pytest.raises(ConfigError, match=r"longrope .* set context_tokens to at most 256"):
        load(tmp_path)
