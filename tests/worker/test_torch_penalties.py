"""Penalties equal a brute-force reference, over preemption and continuation."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch_helpers import TINY, greedy, load, save_model, serve

from preble.page_keys import pack_tokens
from preble.types import SamplingParams
from preble_worker.batch import Penalties
from preble_worker.loaded import LoadedEngine
from preble_worker.sampler import SamplingRows, penalized, sample


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return save_model(transformers.LlamaConfig(**TINY), directory)


@pytest.fixture(scope="module")
def loaded(model: Any, directory: Path) -> LoadedEngine:
    return load(directory, page_tokens=4, max_batch_tokens=24)


EACH = [
    replace(greedy(20), frequency_penalty=2.0),
    greedy(20),
    replace(greedy(20), presence_penalty=1.5, frequency_penalty=0.25),
    replace(greedy(20), frequency_penalty=-2.0),
    replace(greedy(20), presence_penalty=2.0, temperature=1.3, top_p=0.9, seed=8),
]
RNG = np.random.default_rng(11)
PROMPTS = [RNG.integers(2, 512, size).tolist() for size in (9, 30, 4, 17, 12)]


def lowered(logits: list[float], output: list[int], sampling: SamplingParams) -> list[float]:
    """OpenAI's formula, a token at a time."""
    logits = list(logits)
    for token, count in Counter(output).items():
        logits[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    return logits


def reference(model: Any, prompt: list[int], sampling: SamplingParams) -> list[int]:
    output: list[int] = []
    while len(output) < sampling.max_tokens:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + output])).logits[0, -1].float().tolist()
        rows = SamplingRows(
            np.array([sampling.temperature], np.float32),
            np.array([sampling.top_p], np.float32),
            np.array([sampling.top_k], np.int32),
            np.array([sampling.seed], np.uint64),
            np.array([len(output)]),
        )
        output.append(int(sample(torch.tensor([lowered(logits, output, sampling)]), rows)[0]))
    return output


@pytest.fixture(scope="module")
def expected(model: Any) -> list[list[int]]:
    return [
        reference(model, prompt, sampling) for prompt, sampling in zip(PROMPTS, EACH, strict=True)
    ]


def test_the_formula() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(4, 50)).astype(np.float32))
    outputs = {3: rng.integers(0, 50, 200).tolist(), 7: [], 1: [5, 5, 49, 0]}
    strengths = {3: (0.5, 0.01), 7: (1.0, 1.0), 1: (-2.0, 1.5)}
    penalties = {
        slot: Penalties(*strengths[slot], bytearray(pack_tokens(output)))
        for slot, output in outputs.items()
    }
    slots = np.array([1, 2, 3, 7])
    result = penalized(logits.clone(), slots, penalties)
    for row, slot in enumerate(slots.tolist()):
        presence, frequency = strengths.get(slot, (0.0, 0.0))
        sampling = SamplingParams(
            max_tokens=1, presence_penalty=presence, frequency_penalty=frequency
        )
        wanted = torch.tensor(lowered(logits[row].tolist(), outputs.get(slot, []), sampling))
        torch.testing.assert_close(result[row], wanted)


def test_a_batch_in_which_some_penalize(
    model: Any, loaded: LoadedEngine, expected: list[list[int]]
) -> None:
    served = serve(loaded, PROMPTS, EACH, arrivals=[0, 0, 2, 5, 5])
    assert served.tokens == expected
    plain = serve(loaded, PROMPTS, greedy(20)).tokens
    changed = [ours != theirs for ours, theirs in zip(expected, plain, strict=True)]
    assert changed == [True, False, True, True, True], "or the test shows nothing"


def test_preempted(loaded: LoadedEngine, expected: list[list[int]]) -> None:
    small = replace(loaded, scheduler=replace(loaded.scheduler, num_pages=20))
    served = serve(small, PROMPTS, EACH)
    assert served.preemptions > 0
    assert served.tokens == expected


def test_resumed_on_another_worker(directory: Path, expected: list[list[int]]) -> None:
    other = load(directory, page_tokens=16, max_batch_tokens=512)
    delivered = [1, 5, 7, 12, 19]
    begun = [
        prompt + tokens[:count]
        for prompt, tokens, count in zip(PROMPTS, expected, delivered, strict=True)
    ]
    resumed = serve(other, begun, EACH, delivered=delivered)
    for tokens, rest, count in zip(expected, resumed.tokens, delivered, strict=True):
        assert rest == tokens[count:]
