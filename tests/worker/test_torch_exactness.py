"""Greedy output equals transformers' `generate`, however the work is cut, shared or interrupted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from torch_helpers import TINY, generate, greedy, load, random_prompts, save_model, serve

from preble.types import FinishReason, SamplingParams
from preble_deploy.demo_model import make_demo_model
from preble_worker.config import SchedulerConfig
from preble_worker.loaded import LoadedEngine

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return save_model(transformers.LlamaConfig(**TINY), directory)


@pytest.fixture(scope="module")
def loaded(model: Any, directory: Path) -> LoadedEngine:
    return load(directory)


def with_options(loaded: LoadedEngine, **options: Any) -> LoadedEngine:
    """The same engine under another scheduler; the pool stays large, the scheduler uses less."""
    scheduler: SchedulerConfig = replace(loaded.scheduler, **options)
    return replace(loaded, scheduler=scheduler)


def test_two_hundred_random_prompts(model: Any, loaded: LoadedEngine) -> None:
    prompts = random_prompts(seed=1, num=208)
    served = serve(loaded, prompts, greedy(NEW_TOKENS))
    assert served.tokens == generate(model, prompts, NEW_TOKENS)
    assert set(served.reasons) == {FinishReason.LENGTH}


def test_demo_model(tmp_path: Path) -> None:
    """The model that users see first, up to a long prompt."""
    demo = make_demo_model(tmp_path / "demo")
    model = transformers.AutoModelForCausalLM.from_pretrained(demo)
    prompts = random_prompts(seed=2, num=16, vocab=1024, longest=300)
    prompts += random_prompts(seed=3, num=1, vocab=1024, shortest=1500, longest=1500)
    served = serve(load(demo), prompts, greedy(24))
    assert served.tokens == generate(model, prompts, 24)


def family_of_prompts() -> list[list[int]]:
    """Prompts along a tree of prefixes, with an exact repeat and a prefix of another."""
    rng = np.random.default_rng(5)

    def some(num: int) -> list[int]:
        drawn: list[int] = rng.integers(2, 512, num).tolist()
        return drawn

    root = some(96)
    branches = [root + some(64), root + some(33), some(160)]
    prompts = [branch + some(num) for branch in branches for num in (3, 3, 18, 18, 40)]
    return [*prompts, prompts[0], branches[0][:144], root, some(1)]


PROMPTS = family_of_prompts()


@pytest.fixture(scope="module")
def expected(model: Any) -> list[list[int]]:
    return generate(model, PROMPTS, NEW_TOKENS)


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "preble_groups", "alise"])
@pytest.mark.parametrize("caching", [True, False])
def test_every_policy(
    loaded: LoadedEngine, expected: list[list[int]], policy: str, caching: bool
) -> None:
    options = {"policy": policy, "prefix_caching": caching, "max_sequences": 6}
    served = serve(with_options(loaded, **options), PROMPTS, greedy(NEW_TOKENS))
    assert served.tokens == expected
    assert (sum(served.cached) > 0) == caching


@pytest.mark.parametrize("budget", [3, 16, 31, 100, 2048])
def test_every_chunk_budget(loaded: LoadedEngine, expected: list[list[int]], budget: int) -> None:
    served = serve(with_options(loaded, max_batch_tokens=budget), PROMPTS, greedy(NEW_TOKENS))
    assert served.tokens == expected
    assert max(decodes + tokens for decodes, _, tokens in served.batches) <= budget


@pytest.mark.parametrize("caching", [True, False])
def test_page_pressure_and_preemption(loaded: LoadedEngine, model: Any, caching: bool) -> None:
    """So few pages that running requests are thrown out and come back."""
    prompts = random_prompts(seed=7, num=24, shortest=20, longest=50)
    options = {"num_pages": 16, "prefix_caching": caching, "context_tokens": 256}
    served = serve(with_options(loaded, **options), prompts, greedy(40))
    assert served.tokens == generate(model, prompts, 40)
    assert served.preemptions > 0


def test_alone_and_in_a_batch(loaded: LoadedEngine, expected: list[list[int]]) -> None:
    for index in range(0, len(PROMPTS), 4):
        served = serve(loaded, [PROMPTS[index]], greedy(NEW_TOKENS))
        assert served.tokens == [expected[index]]


def test_arriving_one_by_one(loaded: LoadedEngine, expected: list[list[int]]) -> None:
    """Decodes and prefill chunks in one batch, with shared pages between both."""
    arrivals = [3 * i for i in range(len(PROMPTS))]
    options = {"max_batch_tokens": 24}
    served = serve(with_options(loaded, **options), PROMPTS, greedy(NEW_TOKENS), arrivals=arrivals)
    assert served.tokens == expected
    assert any(decodes and tokens for decodes, _, tokens in served.batches)


def test_odd_page_size(directory: Path, model: Any, expected: list[list[int]]) -> None:
    served = serve(load(directory, page_tokens=5), PROMPTS, greedy(NEW_TOKENS))
    assert served.tokens == expected


@pytest.mark.parametrize("kept_bytes", [0, 60_000, 1 << 30])
def test_long_decodes_outgrow_kept_copies(
    directory: Path, model: Any, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    """Copies of keys are kept for all, some or none, and grow past their room."""
    monkeypatch.setattr("preble_worker.attention.KEPT_BYTES", kept_bytes)
    prompts = PROMPTS[:4] + random_prompts(seed=13, num=4)
    served = serve(load(directory, page_tokens=4), prompts, greedy(80))
    assert served.tokens == generate(model, prompts, 80)


def test_a_resumed_request_goes_on_with_the_same_draws(loaded: LoadedEngine) -> None:
    """What another worker would do after n delivered tokens: prompt and tokens, position n."""
    sampling = SamplingParams(max_tokens=20, temperature=0.8, top_p=0.95, seed=99, ignore_eos=True)
    whole = serve(loaded, [PROMPTS[3]], sampling).tokens[0]
    resumed = serve(loaded, [PROMPTS[3] + whole[:8]], sampling, delivered=[8])
    assert resumed.tokens == [whole[8:]]


def test_sampled_output_does_not_depend_on_the_batch(loaded: LoadedEngine) -> None:
    each = [
        SamplingParams(
            max_tokens=10, temperature=[0.0, 0.7, 1.3][i % 3], top_k=[0, 20][i % 2], seed=i
        )
        for i in range(len(PROMPTS))
    ]
    together = serve(loaded, PROMPTS, each)
    few = serve(with_options(loaded, max_batch_tokens=40, max_sequences=3), PROMPTS, each)
    assert together.tokens == few.tokens


def test_output_ends_at_the_models_end_token(model: Any, directory: Path) -> None:
    prompts = random_prompts(seed=11, num=4)
    free = serve(load(directory), prompts, greedy(10)).tokens
    ending = load(directory)
    ending = with_options(ending, eos_token_ids=(free[0][4],))
    served = serve(ending, prompts, SamplingParams(max_tokens=10))
    first = free[0].index(free[0][4])
    assert served.tokens[0] == free[0][: first + 1]
    assert served.reasons[0] == FinishReason.STOP
