"""Output tokens per second of the torch engine, beside transformers in the same run.

32 requests of 512 prompt tokens, 448 of them shared, and 64 new tokens each; tiny Llama in
float32 on one CPU thread. The engines take turns, so that a slow moment of the machine meets all.
Ours also with what costs those who ask for it: log probabilities, and penalties.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.generation.configuration_utils import ContinuousBatchingConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from torch_helpers import TINY, greedy, load, save_model, serve

from preble_worker.loaded import LoadedEngine

PROMPT_TOKENS, SHARED_TOKENS, NEW_TOKENS, REQUESTS = 512, 448, 64, 32
TARGET_RATIO = 2.6


def tiny_llama(directory: Path) -> Any:
    """The model of the comparison."""
    sizes = {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    return save_model(transformers.LlamaConfig(**(TINY | sizes)), directory)


def make_prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    shared = rng.integers(2, 4096, SHARED_TOKENS).tolist()
    own = rng.integers(2, 4096, (REQUESTS, PROMPT_TOKENS - SHARED_TOKENS)).tolist()
    return [shared + tokens for tokens in own]


def run_ours(loaded: LoadedEngine, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    sampling = replace(greedy(NEW_TOKENS), **options)
    return serve(loaded, prompts, sampling, checks=False).tokens


def run_generate(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    tokens = torch.tensor(prompts)
    with torch.inference_mode():
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    answers: list[list[int]] = output[:, PROMPT_TOKENS:].tolist()
    return answers


def run_continuous(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """transformers' own continuous batching, with our token budget and enough cache for all."""
    results = model.generate_batch(
        prompts,
        generation_config=transformers.GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            block_size=32, num_blocks=1024, max_batch_tokens=512
        ),
        progress_bar=False,
        warmup=False,
    )
    return [list(results[f"req_{i}"].generated_tokens) for i in range(len(prompts))]


def seconds(run: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    begun_at = time.perf_counter()
    answers = run()
    return time.perf_counter() - begun_at, answers


def compare(rounds: int) -> None:
    prompts = make_prompts()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_llama(Path(folder))
        loaded = load(Path(folder))
    engines: dict[str, Callable[[], list[list[int]]]] = {
        "preble": lambda: run_ours(loaded, prompts),
        "preble, 5 log probabilities a token": lambda: run_ours(loaded, prompts, top_logprobs=5),
        "preble, penalties": lambda: run_ours(loaded, prompts, frequency_penalty=0.5),
        "transformers generate": lambda: run_generate(model, prompts),
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, list[list[int]]] = {}
    for turn in range(rounds + 1):
        for name, run in engines.items():
            taken, answers[name] = seconds(run)
            if turn:  # The first turn warms up.
                times[name].append(taken)
    continuous, why = try_continuous(model, prompts, answers["transformers generate"])
    print_table(times, continuous, why)
    same = answers["preble"] == answers["transformers generate"]
    print(f"\nsame tokens from preble and generate: {'yes' if same else 'NO'}")


def try_continuous(
    model: Any, prompts: list[list[int]], expected: list[list[int]]
) -> tuple[list[float], str]:
    """Time of transformers' continuous batching, or why there is none."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    try:
        taken, answers = seconds(lambda: run_continuous(model, prompts))
    except Exception as error:  # Whatever it raises, the other figures stand.
        return [], f"{type(error).__name__}: {error}".splitlines()[0]
    return ([taken], "") if answers == expected else ([], "its tokens differ from generate's")


def print_table(times: dict[str, list[float]], continuous: list[float], why: str) -> None:
    new_tokens = REQUESTS * NEW_TOKENS
    print(f"{REQUESTS} requests x {PROMPT_TOKENS} prompt ({SHARED_TOKENS} shared) + {NEW_TOKENS}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, float32\n")
    print(f"{'engine':<36}{'seconds':>9}{'output tokens/s':>18}{'preble is faster':>19}")
    ours = times["preble"]
    for name, taken in times.items():
        ratios = [theirs / mine for theirs, mine in zip(taken, ours, strict=True)]
        target = f"  (target {TARGET_RATIO})" if name.startswith("transformers") else ""
        middle = statistics.median(taken)
        ratio = statistics.median(ratios)
        print(f"{name:<36}{middle:>9.3f}{new_tokens / middle:>18,.0f}{ratio:>18.2f}x{target}")
    name = "transformers continuous batching"
    if continuous:
        ratio = continuous[0] / statistics.median(ours)
        print(f"{name:<36}{continuous[0]:>9.3f}{new_tokens / continuous[0]:>18,.0f}{ratio:>18.2f}x")
    else:
        print(f"{name:<36} does not run here: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    compare(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
