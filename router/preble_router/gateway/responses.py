"""Answers as JSON, and as server-sent events with all but the text encoded once per request."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.responses import Response

from preble.types import FinishReason, Usage
from preble_router.gateway.logprobs import (
    ChoiceLogprobs,
    TokenLogprob,
    chat_logprobs,
    completion_logprobs,
)
from preble_router.text_generation import TextDelta
from preble_router.tokenizer import Tokenizer

DONE_EVENT = b"data: [DONE]\n\n"
NOTHING_USED = Usage(prompt_tokens=0, completion_tokens=0)


@dataclass(slots=True)
class Choice:
    """One output as a whole, while and after it is collected."""

    parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    usage: Usage = NOTHING_USED

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.parts)

    def add(self, delta: TextDelta, logprobs: Sequence[TokenLogprob]) -> None:
        """What came next, and the log probabilities that belong to its text."""
        self.parts.append(delta.text)
        self.logprobs += logprobs
        if delta.finish_reason is not None:
            assert delta.usage is not None
            self.finish_reason, self.usage = delta.finish_reason, delta.usage


def total_usage(usages: Sequence[Usage], *, num_choices: int = 1) -> Usage:
    """The counts of all outputs of one request together.

    A prompt counts once however many choices it has: as the first of them, whose computing is what
    the others find in the cache.

    Args:
        usages: of each prompt `num_choices`, side by side.
    """
    of_prompts = usages[::num_choices]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in of_prompts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in of_prompts),
        predicted_cached_tokens=sum(usage.predicted_cached_tokens for usage in of_prompts),
    )


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage, and beside the cached tokens those that the router had expected."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "predicted_cached_tokens": usage.predicted_cached_tokens,
        },
    }


class ResponseEncoder(ABC):
    """Writes the answer to one request, in one of the API's two shapes.

    Args:
        response_id: without the API's prefix.
        created: seconds since 1970.
        num_choices: for each prompt.
        logprobs_of: writes tokens beside their log probabilities; None where the request asks for
            none.
        include_usage: the stream ends with a usage event, and all others say null.
    """

    id_prefix: str
    whole_object: str
    chunk_object: str
    write_logprobs: Callable[[Sequence[TokenLogprob], Tokenizer], dict[str, Any]]

    def __init__(
        self,
        response_id: str,
        *,
        created: int,
        model: str,
        num_choices: int = 1,
        logprobs_of: Tokenizer | None = None,
        include_usage: bool = False,
    ) -> None:
        self._head = {
            "id": self.id_prefix + response_id,
            "object": self.whole_object,
            "created": created,
            "model": model,
        }
        head = orjson.dumps(self._head | {"object": self.chunk_object})
        self._num_choices = num_choices
        self._logprobs_of = logprobs_of
        self._include_usage = include_usage
        # {"id":...,"model":"m"}  ->  data: {"id":...,"model":"m","choices":[
        self._event_start = b"data: " + head[:-1] + b',"choices":['
        self._event_end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def whole(self, choices: Sequence[Choice]) -> bytes:
        """The answer that is not streamed."""
        usages = [choice.usage for choice in choices]
        usage = total_usage(usages, num_choices=self._num_choices)
        body = self._head | {
            "choices": [self._choice(i, choice) for i, choice in enumerate(choices)],
            "usage": usage_object(usage),
        }
        return orjson.dumps(body)

    def opening(self, index: int) -> bytes:
        """What comes before the first text of a choice."""
        return b""

    def text(self, index: int, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """An event with more text, and the log probabilities that belong to it."""
        written = orjson.dumps(self._logprobs(logprobs)) if logprobs else b"null"
        choice = self._text_choice(index, orjson.dumps(text), written)
        return self._event_start + choice + self._event_end

    def new_logprobs(self) -> ChoiceLogprobs | None:
        """What tells for one choice which log probabilities belong to which text."""
        return None if self._logprobs_of is None else ChoiceLogprobs(self._logprobs_of)

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The event that ends a choice."""
        choice = self._finish_choice(index, reason.value.encode())
        return self._event_start + choice + self._event_end

    def closing(self, usages: Sequence[Usage]) -> bytes:
        """The last events of a stream that ended well; `usages` in the order of the choices."""
        if not self._include_usage:
            return DONE_EVENT
        total = total_usage(usages, num_choices=self._num_choices)
        usage = orjson.dumps(usage_object(total))
        return self._event_start + b'],"usage":' + usage + b"}\n\n" + DONE_EVENT

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """None where the request asks for none."""
        if self._logprobs_of is None:
            return None
        return self.write_logprobs(tokens, self._logprobs_of)

    @abstractmethod
    def _choice(self, index: int, choice: Choice) -> dict[str, Any]: ...

    @abstractmethod
    def _text_choice(self, index: int, text: bytes, logprobs: bytes) -> bytes:
        """Of an event; both are JSON."""

    @abstractmethod
    def _finish_choice(self, index: int, reason: bytes) -> bytes:
        """Of an event."""


class CompletionEncoder(ResponseEncoder):
    """`/v1/completions`."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"
    write_logprobs = staticmethod(completion_logprobs)

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "text": choice.text,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def _text_choice(self, index: int, text: bytes, logprobs: bytes) -> bytes:
        return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null}' % (
            index,
            text,
            logprobs,
        )

    def _finish_choice(self, index: int, reason: bytes) -> bytes:
        return b'{"index":%d,"text":"","logprobs":null,"finish_reason":"%b"}' % (index, reason)


class ChatEncoder(ResponseEncoder):
    """`/v1/chat/completions`."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    write_logprobs = staticmethod(chat_logprobs)

    def opening(self, index: int) -> bytes:
        choice = (
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}' % index
        )
        return self._event_start + choice + self._event_end

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def _text_choice(self, index: int, text: bytes, logprobs: bytes) -> bytes:
        return b'{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}' % (
            index,
            text,
            logprobs,
        )

    def _finish_choice(self, index: int, reason: bytes) -> bytes:
        return b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}' % (index, reason)


def error_event(error: bytes) -> bytes:
    """The event that ends a stream which broke off; `error` is an error object."""
    return b"data: " + error + b"\n\n"


def json_response(content: Any, *, headers: dict[str, str] | None = None) -> Response:
    """A value, or JSON as bytes, as a response."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, headers=headers, media_type="application/json")
