"""Each model family answers as transformers does, from a directory as users download it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch_helpers import TINY, generate, greedy, load, random_prompts, save_model, serve

from preble_worker.models.decoder import Decoder
from preble_worker.models.transformers_model import TransformersModel

SHAPE = {name: TINY[name] for name in TINY if name != "tie_word_embeddings"}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}

OWN: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**TINY),
    "llama-biases": lambda: transformers.LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "llama-one-kv-head": lambda: transformers.LlamaConfig(**(TINY | {"num_key_value_heads": 1})),
    "llama-no-grouping": lambda: transformers.LlamaConfig(**(TINY | {"num_key_value_heads": 4})),
    "llama-wide-heads": lambda: transformers.LlamaConfig(**TINY, head_dim=24),
    "llama-tied": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama3-rope": lambda: transformers.LlamaConfig(**TINY, rope_parameters=LLAMA3_ROPE),
    "linear-rope": lambda: transformers.LlamaConfig(**TINY, rope_parameters=LINEAR_ROPE),
    "mistral": lambda: transformers.MistralConfig(**TINY, sliding_window=20),
    "mistral-no-window": lambda: transformers.MistralConfig(**TINY, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**TINY),
    "qwen2-window": lambda: transformers.Qwen2Config(
        **TINY, use_sliding_window=True, sliding_window=16, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**TINY, head_dim=32),
    "qwen3-tied": lambda: transformers.Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
}

OTHER: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=512, n_positions=512, n_embd=64, n_layer=2, n_head=4
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=512,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=64,
    ),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(
        **(SHAPE | {"intermediate_size": 128}), tie_word_embeddings=False
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **(SHAPE | {"num_hidden_layers": 3}),
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "llama-yarn": lambda: transformers.LlamaConfig(
        **TINY,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
}


def some_prompts(seed: int) -> list[list[int]]:
    """Random ones, and a few that share a prefix longer than any window here."""
    shared = random_prompts(seed + 1, 1, shortest=80, longest=80)[0]
    forks = [shared + tail for tail in random_prompts(seed + 2, 8, longest=30)]
    return [*random_prompts(seed, 16), *forks]


def check_against_generate(model: Any, directory: Path) -> Any:
    prompts = some_prompts(31)
    loaded = load(directory, max_batch_tokens=60, max_sequences=10)
    served = serve(loaded, prompts, greedy(12))
    assert served.tokens == generate(model, prompts, 12)
    return loaded


@pytest.mark.parametrize("name", OWN)
def test_own_decoder(name: str, tmp_path: Path) -> None:
    model = save_model(OWN[name](), tmp_path)
    loaded = check_against_generate(model, tmp_path)
    assert isinstance(loaded.engine._model, Decoder)
    assert loaded.vocab_size == 512


@pytest.mark.parametrize("name", OTHER)
def test_other_architectures_through_transformers(name: str, tmp_path: Path) -> None:
    model = save_model(OTHER[name](), tmp_path)
    loaded = check_against_generate(model, tmp_path)
    assert isinstance(loaded.engine._model, TransformersModel)


def test_config_of_older_transformers(tmp_path: Path) -> None:
    """Before version 5, rope_theta stood alone and the factors in rope_scaling."""
    model = save_model(OWN["llama3-rope"](), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))
    check_against_generate(model, tmp_path)


def test_sharded_weights(tmp_path: Path) -> None:
    model = save_model(OWN["llama"](), tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    check_against_generate(model, tmp_path / "shards")


def test_two_models_in_one_process(tmp_path: Path) -> None:
    """The attention function that transformers calls is one; its steps must not mix."""
    models = {}
    for name in ("gpt2", "opt"):
        models[name] = save_model(OTHER[name](), tmp_path / name, seed=len(name))
    engines = {name: load(tmp_path / name) for name in models}
    prompts = random_prompts(41, 6)
    for name in ("gpt2", "opt", "gpt2"):
        expected = generate(models[name], prompts, 6)
        assert serve(engines[name], prompts, greedy(6)).tokens == expected


def test_bfloat16_follows_transformers_closely(tmp_path: Path) -> None:
    """Half precision rounds differently in another order of sums, so tokens may part in the end;
    most agree with float32's, and the run is the same every time."""
    model = save_model(OWN["llama"](), tmp_path)
    prompts = random_prompts(51, 24)
    served = [serve(load(tmp_path, dtype="bfloat16"), prompts, greedy(4)) for _ in range(2)]
    assert served[0].tokens == served[1].tokens
    expected = np.array(generate(model, prompts, 4))[:, 0]
    assert (np.array(served[0].tokens)[:, 0] == expected).mean() > 0.7


def test_bfloat16_fallback(tmp_path: Path) -> None:
    model = save_model(OTHER["gpt2"](), tmp_path).to(torch.bfloat16)
    prompts = random_prompts(52, 16)
    served = serve(load(tmp_path, dtype="bfloat16"), prompts, greedy(1))
    expected = generate(model, prompts, 1)
    agreeing = [ours == theirs for ours, theirs in zip(served.tokens, expected, strict=True)]
    assert sum(agreeing) >= 12
