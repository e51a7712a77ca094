"""Weights from safetensors files in a directory; nothing else, because other formats run code."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preble.errors import ConfigError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DERIVED = (".rotary_emb.inv_freq", ".masked_bias")
"""Tensors that old checkpoints carry although they follow from the config."""


def safetensors_files(directory: Path) -> list[Path]:
    """The weight files of a model, as its index names them.

    Raises:
        ConfigError: there are none, or they are in a format that can run code, or one is missing.
    """
    if (directory / INDEX).is_file():
        files = _indexed(directory)
    elif (directory / SINGLE).is_file():
        files = [directory / SINGLE]
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ConfigError(_why_no_weights(directory))
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{directory}: {INDEX} names {path.name}, which is not there")
    return files


def _indexed(directory: Path) -> list[Path]:
    path = directory / INDEX
    try:
        names = {str(name) for name in json.loads(path.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: not an index of safetensors files ({error!r})") from error
    outside = sorted(name for name in names if Path(name).name != name)
    if outside:
        raise ConfigError(f"{path}: names {outside[0]!r}, which is not a file beside it")
    return [directory / name for name in sorted(names)]


def _why_no_weights(directory: Path) -> str:
    pickled = sorted(p.name for p in directory.glob("*") if p.suffix in PICKLED)
    if pickled:
        return (
            f"{directory}: weights are only in {pickled[0]}, a format that can run code when it "
            "is read; convert the model to safetensors"
        )
    return f"{directory}: no model weights ({SINGLE} or {INDEX})"


class Checkpoint:
    """A model's tensors, each taken once, in the dtype and on the device wanted."""

    def __init__(self, directory: Path, *, dtype: torch.dtype, device: torch.device) -> None:
        """Open the files.

        Raises:
            ConfigError: there are none, or one is not a safetensors file.
        """
        from safetensors import SafetensorError, safe_open

        self._directory = directory
        self._dtype = dtype
        self._device = device
        self._files: dict[str, Any] = {}
        for path in safetensors_files(directory):
            try:
                file: Any = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{path}: not a safetensors file ({error})") from error
            self._files.update(dict.fromkeys(file.keys(), file))

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor `name`, which must have this shape.

        Raises:
            ConfigError: it is missing or has another shape.
        """
        if name not in self._files:
            raise ConfigError(f"{self._directory}: the weights have no tensor {name}")
        tensor: Tensor = self._files.pop(name).get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"{self._directory}: tensor {name} has shape {tuple(tensor.shape)}, "
                f"config.json makes it {shape}"
            )
        return tensor.to(device=self._device, dtype=self._dtype)

    def drop(self, name: str) -> None:
        """Do without `name`, whether it is there or not."""
        self._files.pop(name, None)

    def finish(self) -> None:
        """Close the files.

        Raises:
            ConfigError: tensors are left that the model has no place for, so that the config must
                be another model's.
        """
        left = sorted(name for name in self._files if not name.endswith(DERIVED))
        self._files.clear()
        if left:
            raise ConfigError(
                f"{self._directory}: {len(left)} tensors have no place in the model that "
                f"config.json describes, the first is {left[0]}"
            )
