"""From what an operator calls a model to a directory with its files."""

import os
from pathlib import Path

from preble.errors import ConfigError

DEMO = "demo"
HUB_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.jinja")
"""What is fetched from the hub: never pickles, never code."""


def cache_directory() -> Path:
    """Where models made here are kept: $PREBLE_CACHE, or `preble` in the user's cache directory."""
    if chosen := os.environ.get("PREBLE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "preble"


def resolve_model(name: str) -> Path:
    """The directory of the model `name`: made, found or downloaded.

    Args:
        name: "demo", a directory, or a name on the Hugging Face hub, with "@revision" or without.

    Raises:
        ConfigError: there is no such model, or its directory lacks a file.
    """
    if name == DEMO:
        return _demo()
    path = Path(name).expanduser()
    if path.is_dir():
        return _complete(path.resolve(), name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"MODEL is {name!r}; allowed: demo, an existing directory, or a hub name like "
            "HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    return _complete(_download(name), name)


def _demo() -> Path:
    from preble_deploy.demo_model import DEMO_VERSION, make_demo_model

    directory = cache_directory() / f"demo-{DEMO_VERSION}"
    try:
        return make_demo_model(directory)
    except OSError as error:
        raise ConfigError(
            f"cannot make the demo model in {directory}: {error.strerror}; set PREBLE_CACHE to a "
            "directory that can be written"
        ) from None


def _complete(path: Path, name: str) -> Path:
    for file in ("config.json", "tokenizer.json"):
        if not (path / file).is_file():
            raise ConfigError(f"MODEL is {name!r}, which has no {file}")
    return path


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=list(HUB_PATTERNS)
            )
        )
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"MODEL is {name!r}, which is neither a directory nor in the hub cache, and the hub "
            "cannot be reached"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"MODEL is {name!r}; the hub says: {reason}") from None
