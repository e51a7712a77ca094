"""Prompts to vectors by a sentence encoder, in a thread of its own.

Any encoder that transformers loads will do, such as all-MiniLM-L6-v2; torch and transformers are
imported when one is asked for.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from preble.errors import ConfigError
from preble_router.lengths.predictor import Vector

MAX_TOKENS = 256
"""Of a longer prompt only the end is embedded, and encoders take little more."""


class PromptEmbedder:
    """An encoder with its tokenizer.

    Attributes:
        max_tokens: of the end of a prompt, more are of no use.
    """

    max_tokens = MAX_TOKENS

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    @classmethod
    def from_directory(cls, path: Path) -> Self:
        """The encoder saved in `path`.

        Raises:
            ConfigError: there is none, or torch and transformers are not installed.
        """
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise ConfigError(
                "--length-embedder needs torch and transformers: pip install 'preble[worker]'"
            ) from error
        if not (path / "config.json").is_file():
            raise ConfigError(f"--length-embedder {path} is no directory with a config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            encoder = AutoModel.from_pretrained(path, local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"cannot load the encoder in {path}: {error}") from error
        return cls(tokenizer, encoder)

    async def embed(self, text: str) -> Vector:
        """The mean of the encoder's last hidden states over the text's tokens, unit length."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, text)

    def close(self) -> None:
        """Lets go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _embed(self, text: str) -> Vector:
        import torch

        inputs = self._tokenizer(
            text or " ", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states = self._encoder(**inputs).last_hidden_state[0]
        mean = torch.nn.functional.normalize(states.float().mean(dim=0), dim=0)
        vector: Vector = mean.numpy()
        return vector
