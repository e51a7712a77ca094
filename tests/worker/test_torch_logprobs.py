"""Log probabilities equal transformers' log-softmax, whatever the batch, and wherever resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch_helpers import TINY, greedy, load, save_model, serve

from preble.page_keys import unpack_tokens
from preble.types import Logprobs, SamplingParams
from preble_worker.loaded import LoadedEngine

TOLERANCE = 2e-5
NUM_TOP = 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return save_model(transformers.LlamaConfig(**TINY), directory)


@pytest.fixture(scope="module")
def loaded(model: Any, directory: Path) -> LoadedEngine:
    return load(directory, page_tokens=4, max_batch_tokens=24)


def asking(num_top: int | None, **options: Any) -> SamplingParams:
    return replace(greedy(12), top_logprobs=num_top, **options)


def prompts(num: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    shared = rng.integers(2, 512, 20).tolist()
    return [shared[: 5 * i] + rng.integers(2, 512, 3 + 7 * i).tolist() for i in range(num)]


def assert_log_softmax(
    model: Any, prompt: list[int], tokens: list[int], parts: list[Logprobs], num_top: int
) -> None:
    assert len(parts) == len(tokens)
    whole = Logprobs.joined(parts)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0]
    expected = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
    chosen = torch.from_numpy(np.frombuffer(whole.chosen, dtype="<f4").copy())
    torch.testing.assert_close(chosen, expected[range(len(tokens)), tokens], rtol=0, atol=TOLERANCE)
    if not num_top:
        assert whole.top == whole.top_tokens == b""
        return
    top = torch.from_numpy(np.frombuffer(whole.top, dtype="<f4").reshape(-1, num_top).copy())
    values, ids = expected.topk(num_top)
    torch.testing.assert_close(top, values, rtol=0, atol=TOLERANCE)
    assert unpack_tokens(whole.top_tokens).reshape(-1, num_top).tolist() == ids.tolist()


def test_a_batch_in_which_some_ask(model: Any, loaded: LoadedEngine) -> None:
    asked = prompts(6)
    each = [NUM_TOP, None, 0, 2, None, 20]
    served = serve(loaded, asked, [asking(num) for num in each], arrivals=[0, 0, 0, 3, 3, 9])
    plain = serve(loaded, asked, asking(None))
    assert served.tokens == plain.tokens
    assert not any(plain.logprobs)
    for i, num_top in enumerate(each):
        if num_top is None:
            assert not served.logprobs[i]
        else:
            assert_log_softmax(model, asked[i], served.tokens[i], served.logprobs[i], num_top)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.7, "top_p": 0.8, "top_k": 40, "seed": 5},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0},
    ],
)
def test_they_are_the_models_whatever_is_drawn(
    model: Any, loaded: LoadedEngine, options: dict[str, Any]
) -> None:
    (prompt,) = prompts(1)
    served = serve(loaded, [prompt], asking(NUM_TOP, **options))
    assert_log_softmax(model, prompt, served.tokens[0], served.logprobs[0], NUM_TOP)


def test_preempted_and_resumed(model: Any, loaded: LoadedEngine) -> None:
    config = replace(loaded.scheduler, num_pages=24)
    small = replace(loaded, scheduler=config)
    asked = prompts(4)
    served = serve(small, asked, replace(asking(NUM_TOP), max_tokens=24))
    assert served.preemptions > 0
    for prompt, tokens, parts in zip(asked, served.tokens, served.logprobs, strict=True):
        assert_log_softmax(model, prompt, tokens, parts, NUM_TOP)


def test_resumed_on_another_worker(model: Any, directory: Path, loaded: LoadedEngine) -> None:
    (prompt,) = prompts(1)
    first = serve(loaded, [prompt], asking(NUM_TOP))
    other = load(directory, page_tokens=16, max_batch_tokens=512)
    delivered = 5
    resumed = serve(
        other, [prompt + first.tokens[0][:delivered]], asking(NUM_TOP), delivered=[delivered]
    )
    assert resumed.tokens[0] == first.tokens[0][delivered:]
    whole = first.logprobs[0][:delivered] + resumed.logprobs[0]
    assert_log_softmax(model, prompt, first.tokens[0], whole, NUM_TOP)
