"""The cost models that come with Preble: one JSON file per (model, device) in `cost_models/`.

Those from first principles are written by `python -m preble.cost_library`, so that every number in
them is explained in `preble/first_principles.py`; the others are measured by `preble profile`.
"""

import os
from importlib.resources import files
from pathlib import Path

from preble.cost import CostModel
from preble.errors import ConfigError
from preble.first_principles import PAIRS, estimated_cost, estimated_kv_tokens

FOLDER = "cost_models"
SUFFIX = ".json"


def cost_model_names() -> tuple[str, ...]:
    """Names of the cost models that `load_cost_model` finds, sorted."""
    found = (entry.name for entry in (files("preble") / FOLDER).iterdir())
    return tuple(sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)))


def load_cost_model(name: str | os.PathLike[str]) -> CostModel:
    """The cost model of that name, or the one in the file at that path.

    Raises:
        ConfigError: there is neither, or the file cannot be used.
    """
    text = os.fspath(name)
    if text in cost_model_names():
        return CostModel.from_json((files("preble") / FOLDER / (text + SUFFIX)).read_bytes())
    try:
        content = Path(text).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {text}: {error.strerror}; the cost model is a JSON file or one of "
            f"{', '.join(cost_model_names())}"
        ) from error
    return CostModel.from_json(content, where=text)


def known_cost_model(model: str, device: str) -> CostModel | None:
    """The cost model of `model` on `device`, such as "demo" on "cpu"; None if there is none."""
    name = f"{model}-{device}"
    return load_cost_model(name) if name in cost_model_names() else None


def kv_capacity_tokens(name: str) -> int:
    """Tokens of KV cache that fit beside the weights where the named cost model is from.

    Raises:
        ConfigError: it is none from first principles, so that only the caller knows the memory.
    """
    if name in PAIRS:
        return estimated_kv_tokens(*PAIRS[name])
    raise ConfigError(
        f"no KV capacity is known for the cost model {name!r}, only for one of "
        f"{', '.join(sorted(PAIRS))}"
    )


def write_estimates(folder: Path) -> list[Path]:
    """Write the cost models from first principles into `folder`, and return their paths."""
    paths = []
    for name, pair in PAIRS.items():
        path = folder / (name + SUFFIX)
        path.write_text(estimated_cost(*pair).to_json(), encoding="utf-8")
        paths.append(path)
    return paths


if __name__ == "__main__":
    write_estimates(Path(__file__).parent / FOLDER)
