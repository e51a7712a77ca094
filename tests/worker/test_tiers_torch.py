"""The real scheduler over the torch engine with tiers: the same tokens as without."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import transformers
from tier_helpers import MODELS
from torch_helpers import (
    TINY,
    generate,
    greedy,
    load,
    random_prompts,
    save_model,
    serve,
    worker_config,
)
from worker_link_helpers import link, worker

from preble.errors import ConfigError
from preble.page_keys import pack_tokens
from preble_deploy.demo_model import make_demo_model
from preble_worker.batch import ALL_KV, Batch, Direction, Engine
from preble_worker.config import TierConfig
from preble_worker.loaded import LoadedEngine
from preble_worker.scheduler import LocalScheduler
from preble_worker.torch_engine import load_torch_engine

PROMPTS = random_prompts(seed=7, num=16, shortest=20, longest=50)
NEW_TOKENS = 32


@dataclass
class Counting:
    """An engine that counts the pages moved each way, the tokens computed, and the steps with rows
    in a compact form, with rows in several forms, and the rows that change theirs."""

    engine: Engine
    pages: Counter[Direction] = field(default_factory=Counter)
    tokens: int = 0
    compact: int = 0
    mixed: int = 0
    conversions: int = 0

    def run(self, batch: Batch) -> npt.NDArray[np.int64]:
        for move in batch.moves:
            self.pages[move.direction] += len(move.device_pages)
        self.tokens += int(batch.counts.sum())
        is_compact = batch.tables.compact_from[batch.slots] < ALL_KV
        self.compact += bool(is_compact.any())
        self.mixed += bool(is_compact.any() and not is_compact.all())
        self.conversions += len(batch.conversions)
        return self.engine.run(batch)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return save_model(MODELS["llama-2"](), directory)


@pytest.fixture(scope="module")
def expected(model: Any) -> list[list[int]]:
    return generate(model, PROMPTS, NEW_TOKENS)


def short_of_pages(
    directory: Path,
    *,
    measured: bool = False,
    num_pages: int = 14,
    policy: str = "fcfs",
    **options: Any,
) -> tuple[LoadedEngine, Counting]:
    """An engine under a scheduler with so few pages that requests lose theirs, and for which
    copying always pays unless it has `measured` its steps."""
    loaded = load(directory, kv_cache_tokens=2048, host_kv_tokens=4096, policy=policy, **options)
    scheduler = replace(loaded.scheduler, num_pages=num_pages, context_tokens=128)
    if not measured:
        tiers = replace(scheduler.tiers, cost=None)
        scheduler = replace(scheduler, tiers=tiers, cost=None)
    counting = Counting(loaded.engine)
    return replace(loaded, scheduler=scheduler, engine=counting), counting


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("copy_rate", [0.0, 1e7])
def test_swapped_requests_go_on(
    directory: Path, expected: list[list[int]], caching: bool, copy_rate: float
) -> None:
    options = {"kv_tiers": ("host",), "copy_rate": copy_rate, "prefix_caching": caching}
    loaded, counting = short_of_pages(directory, num_pages=12, **options)
    served = serve(loaded, PROMPTS, greedy(NEW_TOKENS))
    assert served.tokens == expected
    assert served.preemptions > 0
    assert counting.pages[Direction.OFFLOAD] and counting.pages[Direction.UPLOAD]


def few_prefixes() -> list[list[int]]:
    """Prompts in turn behind five prefixes, which together are more than the cache."""
    prefixes = random_prompts(seed=11, num=5, shortest=64, longest=64)
    leaves = random_prompts(seed=12, num=16, shortest=5, longest=20)
    return [prefixes[i % 5] + leaf for i, leaf in enumerate(leaves)]


@pytest.mark.parametrize("policy", ["fcfs", "adaptive"])
@pytest.mark.parametrize("copy_rate", [0.0, 1e7])
def test_evicted_prefixes_come_back(
    directory: Path, model: Any, copy_rate: float, policy: str
) -> None:
    """The tokens of transformers, without computing the prefixes again."""
    prompts, computed = few_prefixes(), []
    expected = generate(model, prompts, 8)
    arrivals = [9 * (i - i % 2) for i in range(len(prompts))]
    every: list[tuple[str, ...]] = [(), ("host",)]
    for tiers in every:
        options = {"kv_tiers": tiers, "copy_rate": copy_rate, "policy": policy}
        loaded, counting = short_of_pages(directory, **options)
        scheduler = LocalScheduler(loaded.scheduler, epoch=1)
        served = serve(loaded, prompts, greedy(8), arrivals=arrivals, scheduler=scheduler)
        assert served.tokens == expected
        computed.append(counting.tokens)
        assert (scheduler.load().loaded_tokens_total > 64) is bool(tiers)
    assert computed[1] < 0.7 * computed[0]


def test_swapping_saves_computing(directory: Path, expected: list[list[int]]) -> None:
    """Without prefix caching, what a preempted request had comes from the host or is lost."""
    computed = []
    for tiers in ((), ("host",)):
        loaded, counting = short_of_pages(directory, kv_tiers=tiers, prefix_caching=False)
        assert serve(loaded, PROMPTS, greedy(NEW_TOKENS)).tokens == expected
        computed.append(counting.tokens)
    assert computed[1] < computed[0]


def test_int8_goes_on_much_the_same(directory: Path, expected: list[list[int]]) -> None:
    loaded, counting = short_of_pages(directory, kv_tiers=("host", "int8"), prefix_caching=False)
    served = serve(loaded, PROMPTS, greedy(NEW_TOKENS))
    assert counting.pages[Direction.UPLOAD]
    same = np.array(served.tokens) == np.array(expected)
    assert same.mean() > 0.8
    assert served.tokens != expected or same.all()


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("tiers", [("hidden",), ("hidden", "host")])
def test_adaptive_keeps_some_in_the_hidden_form(
    directory: Path, expected: list[list[int]], caching: bool, tiers: tuple[str, ...]
) -> None:
    """Forms as the policy wants them, beside preemption, sharing and swapping."""
    options = {"policy": "adaptive", "kv_tiers": tiers, "prefix_caching": caching}
    loaded, counting = short_of_pages(directory, measured=True, **options)
    # A step takes a second here, and whoever is late is not worth a choice.
    slos = {"ttft_slo_seconds": 1e4, "tbt_slo_seconds": 1e4}
    loaded = replace(loaded, scheduler=replace(loaded.scheduler, **slos))
    served = serve(loaded, PROMPTS, greedy(NEW_TOKENS), arrivals=[2 * i for i in range(16)])
    assert served.tokens == expected
    assert counting.compact and counting.mixed


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("tiers", [("int8-resident",), ("int8-resident", "host", "hidden")])
def test_adaptive_keeps_some_in_int8(
    directory: Path, expected: list[list[int]], caching: bool, tiers: tuple[str, ...]
) -> None:
    """Many outputs are the same to their ends, though one other token changes all that follow;
    and prompts with the same tokens share only exact pages."""
    options = {"policy": "adaptive", "kv_tiers": tiers, "prefix_caching": caching}
    loaded, counting = short_of_pages(directory, measured=True, **options)
    slos = {"ttft_slo_seconds": 1e4, "tbt_slo_seconds": 1e4}
    loaded = replace(loaded, scheduler=replace(loaded.scheduler, **slos))
    scheduler = LocalScheduler(loaded.scheduler, epoch=1)
    arrivals = [2 * i for i in range(16)]
    served = serve(loaded, PROMPTS, greedy(NEW_TOKENS), arrivals=arrivals, scheduler=scheduler)
    assert counting.compact and counting.mixed
    assert scheduler.tier_totals.int8_starts or counting.conversions
    same = np.array(served.tokens) == np.array(expected)
    assert same.mean() > 0.5
    for prompt, tokens in zip(PROMPTS[:4], expected, strict=False):
        alone = serve(loaded, [prompt], greedy(NEW_TOKENS), scheduler=scheduler)
        assert alone.tokens == [tokens], "alone it has the full form, and only that is shared"


@pytest.mark.parametrize("policy", ["fcfs", "alise", "adaptive"])
async def test_the_demo_model_over_a_real_link(tmp_path: Path, policy: str) -> None:
    """A whole worker with the engine as configured: a small cache, and copies that cost less than
    the computing of so small a model."""
    demo = make_demo_model(tmp_path / "demo")
    prompts = random_prompts(seed=9, num=16, vocab=1024, shortest=60, longest=120)
    loaded = load(
        demo, policy=policy, kv_tiers=("host",), kv_cache_tokens=640, copy_rate=1e12, threads=1
    )
    counting = Counting(loaded.engine)
    async with (
        worker(replace(loaded, engine=counting)) as running,
        link(running.address) as router,
    ):
        for index, prompt in enumerate(prompts):
            sampling = greedy(40)
            await router.submit(str(index), pack_tokens(prompt), sampling=sampling)
        served = [(await router.finished(str(i))).tokens for i in range(len(prompts))]
    model = transformers.AutoModelForCausalLM.from_pretrained(demo)
    assert served == generate(model, prompts, 40)
    assert counting.pages[Direction.OFFLOAD] and counting.pages[Direction.UPLOAD]


def test_sizes_and_prices(directory: Path, model: Any) -> None:
    everything = ("host", "int8", "hidden")
    loaded = load(directory, kv_tiers=everything, kv_cache_tokens=1600, copy_rate=1e6)
    tiers = loaded.scheduler.tiers
    # 2 layers, keys and values of 64 float32 numbers, 16 tokens to a page.
    assert tiers.page_bytes == 2 * 2 * 64 * 4 * 16
    assert tiers.page_copy_seconds == pytest.approx(tiers.page_bytes / 1e6)
    assert (tiers.host_pages, tiers.int8, tiers.hidden_page_tokens) == (400, True, 32)
    assert tiers.cost is not None and tiers.cost.per_hidden_token > 0
    assert tiers.cost.per_hidden_token < tiers.cost.per_prefill_token
    # A page of 16 tokens has room for 51 with 16 codes and a scale per head.
    assert load(directory, kv_tiers=("int8-resident",)).scheduler.tiers.int8_page_tokens == 51


def test_off_by_default(directory: Path, model: Any) -> None:
    scheduler = load(directory).scheduler
    assert replace(scheduler.tiers, cost=None) == TierConfig()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (transformers.LlamaConfig(**TINY), "d_model = 64 numbers, keys and values are 2·n_kv·d_h"),
        (
            transformers.MistralConfig(**(TINY | {"num_key_value_heads": 4}), sliding_window=20),
            "it attends in windows",
        ),
        (
            transformers.GPT2Config(n_positions=64, n_embd=64, n_layer=1, n_head=4),
            "it runs through transformers' own code",
        ),
    ],
    ids=["gqa", "windows", "transformers"],
)
def test_models_that_cannot_have_the_hidden_form(config: Any, why: str, tmp_path: Path) -> None:
    save_model(config, tmp_path)
    with pytest.raises(ConfigError, match=why):
        load_torch_engine(worker_config(tmp_path, kv_tiers=("hidden",)), cost=None)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            transformers.MistralConfig(**(TINY | {"num_key_value_heads": 4}), sliding_window=20),
            "it attends in windows",
        ),
        (
            transformers.GPT2Config(n_positions=64, n_embd=64, n_layer=1, n_head=4),
            "it runs through transformers' own code",
        ),
    ],
    ids=["windows", "transformers"],
)
def test_models_that_cannot_have_int8(config: Any, why: str, tmp_path: Path) -> None:
    save_model(config, tmp_path)
    with pytest.raises(ConfigError, match=why):
        load_torch_engine(worker_config(tmp_path, kv_tiers=("int8-resident",)), cost=None)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kv_tiers": ("int8",)}, "no 'host'"),
        ({"kv_tiers": ("host",), "host_kv_tokens": 15}, "less than a page of 16 tokens"),
    ],
)
def test_options_that_make_no_sense(
    directory: Path, model: Any, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        load(directory, **options)
