"""The torch engine on a CUDA device: the same tokens as transformers' `generate` on the CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch_helpers import TINY, generate, greedy, load, random_prompts, save_model, serve

from preble.types import SamplingParams
from preble_worker.loaded import LoadedEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

FAMILIES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**TINY),
    "mistral": lambda: transformers.MistralConfig(**TINY, sliding_window=20),
    "qwen2": lambda: transformers.Qwen2Config(**TINY),
    "qwen3": lambda: transformers.Qwen3Config(**TINY, head_dim=32),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=512, n_positions=512, n_embd=64, n_layer=2, n_head=4
    ),
}


def on_cuda(directory: Path, **options: Any) -> LoadedEngine:
    return load(directory, device="cuda", dtype="float32", kv_cache_tokens=65_536, **options)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return save_model(FAMILIES["llama"](), directory)


def test_two_hundred_random_prompts(model: Any, directory: Path) -> None:
    prompts = random_prompts(seed=1, num=208)
    served = serve(on_cuda(directory), prompts, greedy(12))
    assert served.tokens == generate(model, prompts, 12)


def forks() -> list[list[int]]:
    shared = random_prompts(3, 1, shortest=120, longest=120)[0]
    tails = random_prompts(4, 20, longest=40)
    return [shared + tail for tail in tails] + random_prompts(5, 8)


@pytest.mark.parametrize("budget", [16, 100, 2048])
@pytest.mark.parametrize("caching", [True, False])
def test_mixed_batches(model: Any, directory: Path, budget: int, caching: bool) -> None:
    """Decodes and prefill chunks in one step, prefixes shared between both."""
    loaded = on_cuda(directory, max_batch_tokens=budget, prefix_caching=caching)
    prompts = forks()
    arrivals = [2 * i for i in range(len(prompts))]
    served = serve(loaded, prompts, greedy(12), arrivals=arrivals)
    assert served.tokens == generate(model, prompts, 12)
    assert any(decodes and tokens for decodes, _, tokens in served.batches)


def test_page_pressure_and_preemption(model: Any, directory: Path) -> None:
    loaded = on_cuda(directory)
    scheduler = replace(loaded.scheduler, num_pages=16, context_tokens=256)
    prompts = random_prompts(seed=7, num=24, shortest=20, longest=50)
    served = serve(replace(loaded, scheduler=scheduler), prompts, greedy(40))
    assert served.tokens == generate(model, prompts, 40)
    assert served.preemptions > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, tmp_path: Path) -> None:
    model = save_model(FAMILIES[name](), tmp_path)
    prompts = forks()
    loaded = on_cuda(tmp_path, max_batch_tokens=60)
    assert serve(loaded, prompts, greedy(12)).tokens == generate(model, prompts, 12)


def test_draws_are_those_of_the_cpu(model: Any, directory: Path) -> None:
    prompts = forks()
    each = [
        SamplingParams(max_tokens=8, temperature=0.9, top_k=[0, 30][i % 2], seed=i)
        for i in range(len(prompts))
    ]
    here, there = (serve(engine, prompts, each) for engine in (on_cuda(directory), load(directory)))
    assert here.tokens == there.tokens


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(model: Any, directory: Path, dtype: str) -> None:
    prompts = forks()
    loaded = load(directory, device="cuda", dtype=dtype, kv_cache_tokens=65_536)
    served = np.array(serve(loaded, prompts, greedy(1)).tokens)
    assert (served == np.array(generate(model, prompts, 1))).mean() > 0.7


def test_default_pool_takes_most_of_the_free_memory(directory: Path, model: Any) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    loaded = load(directory, device="cuda", max_sequences=4)
    per_token = 2 * 2 * 2 * 16 * 4
    taken = loaded.scheduler.num_pages * loaded.scheduler.page_tokens * per_token
    assert 0.8 * free < taken < 0.95 * free
    assert loaded.scheduler.max_batch_tokens == 2048
