"""Makes the engine that the configuration names. The only place that knows which there are."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preble.cost import CostModel
from preble.cost_library import load_cost_model
from preble.errors import ConfigError
from preble.first_principles import H100, LLAMA_3_8B, estimated_cost
from preble_worker.config import SchedulerConfig, WorkerConfig
from preble_worker.estimated_tiers import named_tiers
from preble_worker.loaded import LoadedEngine
from preble_worker.simulated_engine import LOWEST_TOKEN, SimulatedEngine

log = logging.getLogger(__name__)

ENGINES = ("torch", "simulated")

LLAMA_3_8B_ON_H100 = estimated_cost(LLAMA_3_8B, H100)
"""What the engine of sleeps costs when no measured model is given."""

SIMULATED_KV_TOKENS = 400_000
"""What fits beside those weights in 80 GB."""

SIMULATED_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the engine of sleeps takes from a model directory; the defaults are Llama-3-8B's."""

    vocab_size: int = 128_256
    context_tokens: int = 8192
    eos_token_ids: tuple[int, ...] = (128_001, 128_009)


def load_engine(config: WorkerConfig) -> LoadedEngine:
    """Make the engine; for "torch" this loads the weights, which takes a while.

    Raises:
        ConfigError: an option or a file of the model cannot be used.
    """
    cost = None
    if config.cost_model is not None:
        cost = load_cost_model(config.cost_model)
    if config.engine == "simulated":
        return load_simulated_engine(config, cost=cost)
    if config.engine != "torch":
        raise ConfigError(f"engine is {config.engine!r}, must be one of {', '.join(ENGINES)}")
    try:
        from preble_worker.torch_engine import load_torch_engine
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"engine 'torch' needs {error.name}, which is not installed: "
            "pip install 'preble[worker]'"
        ) from error
    return load_torch_engine(config, cost=cost)


def load_simulated_engine(config: WorkerConfig, *, cost: CostModel | None) -> LoadedEngine:
    """The engine of sleeps with the vocabulary and context of the model, where there is one."""
    shape = read_model_shape(config.model_path)
    if cost is None:
        cost = LLAMA_3_8B_ON_H100
        log.warning("step times are not measured: first principles of %s", cost.name)
    if shape.vocab_size <= LOWEST_TOKEN + len(shape.eos_token_ids):
        raise ConfigError(f"{config.model_path}: vocab_size is {shape.vocab_size}, too small")
    kv_tokens = config.kv_cache_tokens or SIMULATED_KV_TOKENS
    if kv_tokens < config.page_tokens:
        raise ConfigError(
            f"kv_cache_tokens is {kv_tokens}, must be at least one page of {config.page_tokens}"
        )
    tiers = named_tiers(
        cost.name,
        config.kv_tiers,
        kv_tokens=kv_tokens,
        page_tokens=config.page_tokens,
        host_kv_tokens=config.host_kv_tokens,
        copy_rate=config.copy_rate,
    )
    return LoadedEngine(
        engine=SimulatedEngine(cost, shape.vocab_size, tiers=tiers, excluded=shape.eos_token_ids),
        scheduler=SchedulerConfig(
            num_pages=kv_tokens // config.page_tokens,
            page_tokens=config.page_tokens,
            max_batch_tokens=config.max_batch_tokens or SIMULATED_BATCH_TOKENS,
            max_sequences=config.max_sequences,
            context_tokens=config.context_tokens or shape.context_tokens,
            policy=config.policy,
            prefix_caching=config.prefix_caching,
            eos_token_ids=shape.eos_token_ids,
            tiers=tiers,
            cost=cost,
            ttft_slo_seconds=config.ttft_slo_seconds,
            tbt_slo_seconds=config.tbt_slo_seconds,
        ),
        cost=cost,
        vocab_size=shape.vocab_size,
        name="simulated",
    )


def read_model_shape(directory: Path) -> ModelShape:
    """Read config.json and generation_config.json as Hugging Face writes them.

    What they do not say, and a directory without config.json, takes the defaults.
    """
    if not (directory / "config.json").is_file():
        return ModelShape()
    values = _read_json(directory / "config.json")
    values = values.get("text_config", values)
    generation = directory / "generation_config.json"
    eos = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    if eos is None:
        eos = values.get("eos_token_id")
    shape = ModelShape(
        vocab_size=values.get("vocab_size", ModelShape().vocab_size),
        context_tokens=values.get("max_position_embeddings", ModelShape().context_tokens),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )
    for number in (shape.vocab_size, shape.context_tokens, *shape.eos_token_ids):
        if not isinstance(number, int):
            raise ConfigError(f"{directory}/config.json: {number!r} where a number belongs")
    return shape


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return values
