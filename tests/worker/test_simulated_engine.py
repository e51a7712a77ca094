"""The engine of sleeps: what it draws, how long it sleeps, what it takes from a model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from preble.cost import CostModel
from preble.errors import ConfigError
from preble.page_keys import pack_tokens
from preble_worker.batch import Batch, Direction, Move, SlotTables
from preble_worker.config import TierConfig, WorkerConfig
from preble_worker.engines import LLAMA_3_8B_ON_H100, ModelShape, load_engine, read_model_shape
from preble_worker.logprobs import LogprobColumns
from preble_worker.simulated_engine import LOWEST_TOKEN, SimulatedEngine, simulated_tokens

COST = CostModel(
    name="test",
    fixed=1.0,
    per_prefill_token=0.1,
    per_attention=0.01,
    per_decode=0.5,
    per_context_token=0.001,
)


def make_batch(tables: SlotTables, slots: list[int], samples: list[bool]) -> Batch:
    n = len(slots)
    return Batch(
        step=1,
        slots=np.array(slots),
        starts=np.zeros(n, np.int64),
        counts=np.array([1, 1, 7][:n]),
        samples=np.array(samples),
        num_decodes=2,
        prefill_tokens=np.zeros(7, np.int64),
        tables=tables,
        context_tokens=40,
        attention=24.5,
        composition=1,
    )


def test_a_run_sleeps_what_the_cost_model_predicts_and_scales_it():
    slept: list[float] = []
    engine = SimulatedEngine(COST, 100, sleep=slept.append, time_scale=0.5)
    engine.run(make_batch(SlotTables(4, 4), [0, 1, 2], [True, True, False]))
    assert slept == [pytest.approx(0.5 * (1 + 0.1 * 7 + 0.01 * 24.5 + 0.5 * 2 + 0.001 * 40))]


def test_copies_take_their_time():
    """What the step reads comes in before it; what leaves crosses beside it."""
    slept: list[float] = []
    tiers = TierConfig(host_pages=99, page_copy_seconds=0.25)
    engine = SimulatedEngine(COST, 100, tiers=tiers, sleep=slept.append)
    batch = make_batch(SlotTables(4, 4), [0, 1, 2], [True, True, False])
    moves = []
    for direction, count in ((Direction.UPLOAD, 8), (Direction.OFFLOAD, 40)):
        pages = np.arange(count, dtype=np.int32)
        moves.append(
            Move(
                direction=direction,
                device_pages=pages,
                host_pages=pages,
                int8=False,
                before_step=True,
            )
        )
    engine.run(replace(batch, moves=tuple(moves)))
    assert slept == [pytest.approx(8 * 0.25 + 40 * 0.25)]


def test_time_scale_zero_never_sleeps():
    engine = SimulatedEngine(COST, 100, sleep=lambda _: pytest.fail("slept"), time_scale=0.0)
    engine.run(make_batch(SlotTables(4, 4), [0, 1, 2], [True, True, True]))


def test_a_run_draws_the_oracles_token_for_each_sampling_row_in_row_order():
    prompts = [pack_tokens([5, i]) for i in range(4)]
    tables = SlotTables(4, 4)
    for slot, prompt in enumerate(prompts):
        tables.prompt_hash[slot] = xxhash.xxh3_64_intdigest(prompt)
        tables.seed[slot] = 2**63 + slot
        tables.output_position[slot] = 10 * slot
    engine = SimulatedEngine(COST, 1000, time_scale=0.0)
    drawn = engine.run(make_batch(tables, [3, 0, 2], [True, False, True]))
    expected = [
        int(simulated_tokens(prompts[slot], 2**63 + slot, 1, 1000, start=10 * slot)[0])
        for slot in (3, 2)
    ]
    assert drawn.tolist() == expected
    assert drawn.dtype == np.int64


def test_all_tokens_are_as_likely_as_they_are_drawn():
    logprobs = LogprobColumns.ask([(0, 2), (2, 3)])
    batch = replace(make_batch(SlotTables(4, 4), [0, 1, 2], [True] * 3), logprobs=logprobs)
    engine = SimulatedEngine(COST, 20, excluded=(4,), time_scale=0.0)
    drawable = 20 - LOWEST_TOKEN - 1
    engine.run(batch)
    packed = logprobs.packed()
    assert set(packed) == {0, 2}
    assert np.frombuffer(packed[0].chosen, "<f4") == pytest.approx([-np.log(drawable)])
    assert np.frombuffer(packed[2].top, "<f4") == pytest.approx([-np.log(drawable)] * 3)
    assert packed[2].top_tokens == pack_tokens([3, 5, 6])


def test_the_oracle_resumes_anywhere():
    prompt = pack_tokens([1, 2, 3])
    whole = simulated_tokens(prompt, 9, 50, 4096)
    assert np.array_equal(simulated_tokens(prompt, 9, 30, 4096, start=20), whole[20:])


def test_tokens_differ_by_prompt_seed_and_position():
    streams = {
        tuple(simulated_tokens(pack_tokens([p]), seed, 20, 128_256))
        for p in range(20)
        for seed in range(20)
    }
    assert len(streams) == 400
    assert len(set(simulated_tokens(b"abcd", 0, 1000, 2**31).tolist())) == 1000


def test_tokens_cover_the_vocabulary_but_for_what_is_excluded():
    excluded = (0, 5, 6, 19, 300)
    drawn = simulated_tokens(b"abcd", 1, 5000, 20, excluded=excluded)
    assert set(drawn.tolist()) == set(range(LOWEST_TOKEN, 20)) - set(excluded)
    counts = np.bincount(drawn)
    assert counts[counts > 0].min() > 0.7 * counts.max(), "not uniform"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(
        json.dumps({"vocab_size": 500, "max_position_embeddings": 2048, "eos_token_id": 7})
    )
    return tmp_path


def test_the_model_directory_gives_vocabulary_context_and_eos(model: Path):
    assert read_model_shape(model) == ModelShape(
        vocab_size=500, context_tokens=2048, eos_token_ids=(7,)
    )
    (model / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert read_model_shape(model).eos_token_ids == (7, 9)


def test_without_a_model_directory_it_is_llama_3(tmp_path: Path):
    loaded = load_engine(WorkerConfig(model="m", model_path=tmp_path / "none", engine="simulated"))
    assert (loaded.vocab_size, loaded.scheduler.context_tokens) == (128_256, 8192)
    assert loaded.cost is LLAMA_3_8B_ON_H100
    assert loaded.name == "simulated"


def test_options_reach_the_scheduler(model: Path):
    cost = model / "cost.json"
    cost.write_text(COST.to_json())
    loaded = load_engine(
        WorkerConfig(
            model="m",
            model_path=model,
            engine="simulated",
            page_tokens=8,
            kv_cache_tokens=1000,
            max_batch_tokens=77,
            max_sequences=5,
            context_tokens=99,
            policy="fcfs",
            prefix_caching=False,
            cost_model=cost,
        )
    )
    options = loaded.scheduler
    assert (options.num_pages, options.page_tokens, options.max_batch_tokens) == (125, 8, 77)
    assert (options.max_sequences, options.context_tokens, options.policy) == (5, 99, "fcfs")
    assert not options.prefix_caching
    assert options.eos_token_ids == (7,)
    assert loaded.cost == COST


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "steam"}, "engine is 'steam', must be one of torch, simulated"),
        ({"kv_cache_tokens": 3}, "kv_cache_tokens is 3"),
        ({"cost_model": Path("/nowhere.json")}, "cannot read /nowhere.json"),
    ],
)
def test_a_wrong_option_is_named(model: Path, options, words: str):
    config = {"model": "m", "model_path": model, "engine": "simulated"} | options
    with pytest.raises(ConfigError, match=words):
        load_engine(WorkerConfig(**config))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"vocab_size": "x"}', "where a number belongs"),
        ('{"vocab_size": 4, "eos_token_id": [3]}', "too small"),
    ],
)
def test_a_broken_model_config_is_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_engine(WorkerConfig(model="m", model_path=tmp_path, engine="simulated"))
