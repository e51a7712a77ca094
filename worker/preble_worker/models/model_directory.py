"""What a Hugging Face model directory says besides its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preble.errors import ConfigError


def read_model_config(directory: Path) -> Mapping[str, Any]:
    """config.json as it stands.

    Raises:
        ConfigError: it is missing, is no JSON object, or asks for what is never done.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ConfigError(f"model {directory}: no config.json")
    config = _read_object(path)
    if "quantization_config" in config:
        method = config["quantization_config"]
        name = method.get("quant_method", "unknown") if isinstance(method, Mapping) else method
        raise ConfigError(f"{path}: quantized weights ({name}) are not supported")
    return config


def read_eos_token_ids(directory: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens that end an output: generation_config.json's, else config.json's."""
    path = directory / "generation_config.json"
    generation = _read_object(path) if path.is_file() else {}
    ids = generation.get("eos_token_id")
    if ids is None:
        ids = config.get("eos_token_id")
    if ids is None:
        return ()
    return tuple(int(i) for i in (ids if isinstance(ids, list) else [ids]))


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Positions the model was made for, under the names that families give them."""
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return value
