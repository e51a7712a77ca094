"""Prompts to tokens without holding up the event loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from preble.page_keys import TOKEN_BYTES
from preble_router.lengths.predictor import Vector
from preble_router.prompt_embedding import PromptEmbedder
from preble_router.tokenizer import Tokenizer

INLINE_CHARS = 2048
"""Longer prompts go to a thread. Shorter ones take less than a millisecond (0.4 µs per character
was measured), and the way to a thread and back would add some 80 µs."""

T = TypeVar("T")


class PromptEncoder:
    """Runs a `Tokenizer`, short prompts at once and long ones in a few threads.

    Args:
        embedder: embeds prompts for the prediction of their answers' lengths; None for nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_threads: int = 4,
        embedder: PromptEmbedder | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._embedder = embedder
        self._threads = ThreadPoolExecutor(max_threads, thread_name_prefix="tokenize")

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> bytes:
        """As `Tokenizer.encode`."""
        return await self._run(
            len(text), lambda: self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        )

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template_variables: Mapping[str, Any] | None = None,
    ) -> bytes:
        """As `Tokenizer.encode_chat`."""
        return await self._run(
            sum(len(message["content"]) for message in messages),
            lambda: self.tokenizer.encode_chat(
                messages,
                add_generation_prompt=add_generation_prompt,
                template_variables=template_variables,
            ),
        )

    async def decode(self, tokens: bytes) -> str:
        """As `Tokenizer.decode`."""
        return await self._run(len(tokens), lambda: self.tokenizer.decode(tokens))

    async def embed(self, tokens: bytes) -> Vector | None:
        """The embedding of a prompt's end, None where there is no embedder."""
        if self._embedder is None:
            return None
        end = tokens[-self._embedder.max_tokens * TOKEN_BYTES :]
        return await self._embedder.embed(await self.decode(end))

    def close(self) -> None:
        """Lets go of the threads; what they are at is finished and thrown away."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size <= INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
