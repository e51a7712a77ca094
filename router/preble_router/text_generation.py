"""Tokens of a generation to text: decoded as they come, ended by stop strings, counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from preble.errors import PromptTooLong
from preble.page_keys import TOKEN_BYTES, num_tokens, unpack_tokens
from preble.types import FinishReason, Logprobs, Usage
from preble_router.generation import Delta, Generation
from preble_router.stop_strings import StopStrings
from preble_router.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What came since the previous delta; either part may be empty.

    Attributes:
        tokens: packed. Their text may come later: characters are given out whole, and what may
            be the beginning of a stop string is held back.
        finish_reason: set in the last delta, and `usage` with it.
        logprobs: of `tokens`, where the request asks for them.
    """

    text: str
    tokens: bytes
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: Logprobs | None = None


class TextGeneration:
    """An asynchronous iterator of `TextDelta` over a `Generation`.

    The text ends right before the first stop string, and the generation is cancelled there. It
    leaves out special tokens, and the token that ended the output. Iteration raises what the
    generation raises. Whoever stops iterating early calls `cancel`.

    Args:
        stop: no empty string among them.
    """

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, *, stop: Sequence[str] = ()
    ) -> None:
        self._generation = generation
        self._decoder = tokenizer.stream()
        self._stops = StopStrings(stop) if stop else None
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._ended = False

    @property
    def worker_id(self) -> str:
        """The worker that serves it now."""
        return self._generation.worker_id

    @property
    def tenant(self) -> str:
        """Who is charged for it."""
        return self._generation.request.tenant

    @property
    def predicted_cached_tokens(self) -> int:
        """Prompt tokens the router expected that worker to have cached."""
        return self._generation.predicted_cached_tokens

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        return Usage(
            prompt_tokens=num_tokens(self._generation.request.tokens),
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            predicted_cached_tokens=self._generation.predicted_cached_tokens,
        )

    def cancel(self) -> None:
        """Nobody wants the rest. Does nothing once it has ended."""
        self._generation.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        if self._ended:
            raise StopAsyncIteration
        delta = await self._generation.__anext__()
        if delta.cached_tokens is not None:
            self._cached_tokens = delta.cached_tokens
        if self._stops is not None:
            return self._searched(delta, self._stops)
        if delta.finish_reason is None and len(delta.tokens) == TOKEN_BYTES:  # nearly always
            self._completion_tokens += 1
            token_id = int.from_bytes(delta.tokens, "little")
            text = self._decoder.push(token_id)
            return TextDelta(text, delta.tokens, logprobs=delta.logprobs)
        return self._plain(delta)

    def _plain(self, delta: Delta) -> TextDelta:
        self._completion_tokens += num_tokens(delta.tokens)
        text = self._decoder.push_all(_visible_ids(delta))
        if delta.finish_reason is None:
            return TextDelta(text, delta.tokens, logprobs=delta.logprobs)
        return self._last(text + self._decoder.finish(), delta, delta.finish_reason)

    def _searched(self, delta: Delta, stops: StopStrings) -> TextDelta:
        """One token at a time, so that the one that completes a stop string is the last counted."""
        text = ""
        for i, token_id in enumerate(_visible_ids(delta), start=1):
            match = stops.push(self._decoder.push(token_id))
            text += match.text
            if match.stopped:
                return self._stopped(text, delta, num_tokens=i)
        if delta.finish_reason is None:
            self._completion_tokens += num_tokens(delta.tokens)
            return TextDelta(text, delta.tokens, logprobs=delta.logprobs)
        match = stops.push(self._decoder.finish())
        text += match.text
        if match.stopped:
            return self._stopped(text, delta, num_tokens=num_tokens(delta.tokens))
        self._completion_tokens += num_tokens(delta.tokens)
        return self._last(text + stops.finish(), delta, delta.finish_reason)

    def _stopped(self, text: str, delta: Delta, *, num_tokens: int) -> TextDelta:
        """A stop string is complete with so many tokens of `delta`."""
        self._generation.cancel(complete=True)
        self._completion_tokens += num_tokens
        logprobs = delta.logprobs and delta.logprobs.first(num_tokens)
        read = replace(delta, tokens=delta.tokens[: num_tokens * TOKEN_BYTES], logprobs=logprobs)
        return self._last(text, read, FinishReason.STOP)

    def _last(self, text: str, delta: Delta, reason: FinishReason) -> TextDelta:
        self._ended = True
        return TextDelta(text, delta.tokens, reason, self.usage, delta.logprobs)


def _visible_ids(delta: Delta) -> list[int]:
    """The ids whose text is output: an end or stop token is not, special or not."""
    ids: list[int] = unpack_tokens(delta.tokens).tolist()
    return ids[:-1] if delta.finish_reason is FinishReason.STOP else ids


def output_budget(
    requested: int | None, *, default: int, num_prompt_tokens: int, context_tokens: int | None
) -> int:
    """How many output tokens a request may have at most: what it asks for, else `default`, as far
    as the context goes.

    Args:
        context_tokens: longest prompt plus output of one request, None while no worker is known.

    Raises:
        PromptTooLong: the prompt fills the context, or leaves less than was asked for.
    """
    if context_tokens is None:
        return requested or default
    room = context_tokens - num_prompt_tokens
    if requested is None and room > 0:
        return min(default, room)
    needed = num_prompt_tokens + (requested or 1)
    if needed > context_tokens:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens and the output asked for {requested or 1}, "
            f"together {needed}, but the model's context is {context_tokens} tokens",
            num_tokens=needed,
            max_tokens=context_tokens,
        )
    return requested or 1
