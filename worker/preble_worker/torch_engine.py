"""The door to the torch engine: a model directory and options in, a ready engine out.

This is the only file that the rest of the worker imports of the engine, and only once the operator
asked for it, because torch takes seconds to import.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from preble.cost import CostModel
from preble.cost_library import known_cost_model
from preble.errors import ConfigError
from preble_worker.attention import TorchAttention
from preble_worker.cache_tiers import make_tiers, with_hidden_cost
from preble_worker.config import SchedulerConfig, WorkerConfig
from preble_worker.hidden_form import HiddenSource
from preble_worker.kv_pool import KVPool, KVShape, bytes_per_token
from preble_worker.loaded import LoadedEngine
from preble_worker.model_runner import CausalModel, ModelRunner
from preble_worker.models.decoder import Decoder
from preble_worker.models.decoder_config import obstacle, read_decoder_config
from preble_worker.models.model_directory import (
    context_limit,
    read_eos_token_ids,
    read_model_config,
)
from preble_worker.models.transformers_model import TransformersModel
from preble_worker.weights import Checkpoint, safetensors_files

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CPU_KV_TOKENS = 32_768
CPU_KV_SHARE = 0.25
"""Of the machine's memory, at most, where the operator gave no size."""
CUDA_KV_SHARE = 0.9
"""Of the memory that is free once the weights are loaded."""

# What a device sustains, for first-principles costs: FLOP/s, bytes/s, seconds of a step at least.
# A CPU's is per thread; its bytes are few because attention gathers scattered pages.
CPU_SPEED = (5e10, 3e9, 1.5e-3)
CUDA_SPEED = (1.5e14, 1.5e12, 5e-4)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with what the engine must know of it."""

    model: CausalModel
    kv_shapes: Sequence[KVShape]
    vocab_size: int
    parameters: int
    hidden_source: HiddenSource | str


def load_torch_engine(config: WorkerConfig, *, cost: CostModel | None) -> LoadedEngine:
    """Load the model, reserve its KV memory, and fit the scheduler's options to both.

    Raises:
        ConfigError: the directory, a tensor or an option cannot be used; says which and why.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    directory = config.model_path
    raw = read_model_config(directory)
    device = _device(config.device)
    dtype = _dtype(config.dtype, raw, device)
    context = _context_tokens(config.context_tokens, context_limit(raw))
    loaded = _load_model(directory, raw, dtype=dtype, device=device, context_tokens=context)
    num_pages = _num_pages(config, loaded.kv_shapes, dtype, device)
    pool = KVPool(
        loaded.kv_shapes,
        num_pages=num_pages,
        page_tokens=config.page_tokens,
        dtype=dtype,
        device=device,
    )
    tiers, tier_config = make_tiers(config, pool, loaded.hidden_source)
    found = cost or known_cost_model(config.model, device.type)
    cost = with_hidden_cost(
        found or _first_principles(config.model, loaded, raw, dtype, device),
        tiers.hidden,
        loaded.parameters,
    )
    runner = ModelRunner(
        loaded.model,
        TorchAttention(pool, dtype=dtype, device=device, forms=tiers.forms),
        page_tokens=config.page_tokens,
        device=device,
        tiers=tiers,
    )
    scheduler = SchedulerConfig(
        num_pages=num_pages,
        page_tokens=config.page_tokens,
        max_batch_tokens=config.max_batch_tokens or (512 if device.type == "cpu" else 2048),
        max_sequences=config.max_sequences,
        # A request is never longer than the cache that holds it.
        context_tokens=min(context, num_pages * config.page_tokens),
        policy=config.policy,
        prefix_caching=config.prefix_caching,
        eos_token_ids=read_eos_token_ids(directory, raw),
        tiers=replace(tier_config, cost=cost),
        cost=cost,
        ttft_slo_seconds=config.ttft_slo_seconds,
        tbt_slo_seconds=config.tbt_slo_seconds,
    )
    return LoadedEngine(
        engine=runner,
        scheduler=scheduler,
        cost=cost,
        vocab_size=loaded.vocab_size,
        name="torch",
    )


def _load_model(
    directory: Path, raw: Any, *, dtype: torch.dtype, device: torch.device, context_tokens: int
) -> LoadedModel:
    reason = obstacle(raw)
    if reason is not None:
        safetensors_files(directory)
        logger.warning("%s: %s; it runs through transformers, slower", directory, reason)
        other = TransformersModel.load(
            directory, dtype=dtype, device=device, context_tokens=context_tokens
        )
        return LoadedModel(
            model=other,
            kv_shapes=other.kv_shapes,
            vocab_size=other.vocab_size,
            parameters=other.num_parameters,
            hidden_source="it runs through transformers' own code",
        )
    try:
        decoder_config = read_decoder_config(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{directory}/config.json: missing or wrong: {error}") from error
    checkpoint = Checkpoint(directory, dtype=dtype, device=device)
    decoder = Decoder(decoder_config, checkpoint, num_positions=context_tokens)
    return LoadedModel(
        model=decoder,
        kv_shapes=decoder.kv_shapes,
        vocab_size=decoder_config.vocab_size,
        parameters=decoder_config.num_parameters,
        hidden_source=decoder.hidden_source,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ConfigError(f"device is {name!r}, must be auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but torch finds no CUDA device")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r}, but there are {torch.cuda.device_count()}")
    return torch.device(name)


def _dtype(name: str, raw: Any, device: torch.device) -> torch.dtype:
    if name == "auto":
        # Half precision is slow or missing on most CPUs.
        wanted = raw.get("dtype") or raw.get("torch_dtype") or "float32"
        name = "float32" if device.type == "cpu" else str(wanted)
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}, must be auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _context_tokens(asked: int, limit: int | None) -> int:
    if limit is None:
        if not asked:
            raise ConfigError("the model states no longest context, set context_tokens")
        return asked
    if asked > limit:
        raise ConfigError(f"context_tokens is {asked}, the model allows at most {limit}")
    return asked or limit


def _num_pages(
    config: WorkerConfig, shapes: Sequence[KVShape], dtype: torch.dtype, device: torch.device
) -> int:
    per_page = bytes_per_token(shapes, dtype) * config.page_tokens
    if config.kv_cache_tokens:
        num_pages = config.kv_cache_tokens // config.page_tokens
    elif device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        num_pages = int(free * CUDA_KV_SHARE) // per_page
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        num_pages = min(CPU_KV_TOKENS // config.page_tokens, int(memory * CPU_KV_SHARE) // per_page)
    if num_pages < 1:
        raise ConfigError(
            f"the KV cache has room for no page of {config.page_tokens} tokens "
            f"({per_page} bytes); set kv_cache_tokens"
        )
    return num_pages


def _first_principles(
    name: str, loaded: LoadedModel, raw: Any, dtype: torch.dtype, device: torch.device
) -> CostModel:
    flops, bandwidth, fixed = CPU_SPEED if device.type == "cpu" else CUDA_SPEED
    if device.type == "cpu":
        flops *= torch.get_num_threads()
    return CostModel.first_principles(
        name=name,
        parameters=loaded.parameters,
        layers=len(loaded.kv_shapes),
        hidden=int(raw.get("hidden_size") or raw.get("n_embd") or 0),
        kv_bytes_per_token=bytes_per_token(loaded.kv_shapes, dtype),
        flops_per_second=flops,
        bytes_per_second=bandwidth,
        weight_bytes=loaded.parameters * dtype.itemsize,
        fixed=fixed,
    )
