"""Bodies of `/v1/completions` and `/v1/chat/completions` to validated values.

What OpenAI's API knows and Preble does not do is refused by name unless its value asks for nothing.
Besides OpenAI's fields there are, under the names that vLLM gave them: `top_k`, `ignore_eos`,
`stop_token_ids`, `priority` (higher runs first), `chat_template_kwargs`, and `cache_salt`, the
tenant: requests share cached prefixes only with requests of the same `cache_salt`. It is a
namespace, not a key: whoever can name it shares it, under whichever API key. Ours are
`ttft_slo_seconds` and `tbt_slo_seconds`, the objectives for the time to the first token and between
tokens, for workers whose local policy knows objectives.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preble.errors import InvalidRequest
from preble.page_keys import pack_tokens
from preble.types import SamplingParams
from preble_router.gateway.fields import Fields, shown
from preble_router.gateway.messages import read_messages
from preble_router.validation import (
    check_name,
    check_priority,
    check_sampling,
    check_slo,
    check_stop,
)

MAX_PROMPTS = 128
"""Prompts in one completion request."""
MAX_CHOICES = 128
"""Outputs in one answer, of all its prompts together."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "length_penalty": (1, 1.0),
    "logit_bias": ({},),
    "metadata": ({},),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
    "prompt_logprobs": (),
    "repetition_penalty": (1, 1.0),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
}
_COMPLETION_NEUTRAL = _NEUTRAL | {"echo": (False,), "suffix": ("",)}
_CHAT_NEUTRAL = _NEUTRAL | {
    "add_generation_prompt": (True,),
    "audio": (),
    "continue_final_message": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonFields:
    """What completions and chats share.

    Attributes:
        model: "" for the one that is served.
        num_choices: outputs for each prompt.
        max_tokens: None where the request states none; `sampling.max_tokens` then means nothing.
        namespace: tenant, from `cache_salt`.
        ttft_slo_seconds, tbt_slo_seconds: None where the request states none.
    """

    model: str
    stream: bool
    include_usage: bool
    num_choices: int
    max_tokens: int | None
    sampling: SamplingParams
    stop: tuple[str, ...]
    priority: int
    namespace: str
    user: str
    ttft_slo_seconds: float | None
    tbt_slo_seconds: float | None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """`prompts`: each is text, or packed token ids."""

    common: CommonFields
    prompts: list[str | bytes]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`template_variables`: for the chat template, beside the messages."""

    common: CommonFields
    messages: list[dict[str, str]]
    template_variables: Mapping[str, Any]


def read_completion(body: dict[str, Any], *, vocab_size: int) -> CompletionRequest:
    """The body of `/v1/completions`.

    Raises:
        InvalidRequest: names the field, its value, and what is allowed.
    """
    fields = Fields(body)
    prompts = read_prompts(fields.take("prompt"), vocab_size=vocab_size)
    top_logprobs = fields.integer("logprobs")
    common = _read_common(
        fields,
        num_prompts=len(prompts),
        top_logprobs=top_logprobs,
        top_logprobs_field="logprobs",
    )
    fields.finish(_COMPLETION_NEUTRAL)
    return CompletionRequest(common, prompts)


def read_chat(body: dict[str, Any]) -> ChatRequest:
    """The body of `/v1/chat/completions`.

    Raises:
        InvalidRequest: names the field, its value, and what is allowed.
    """
    fields = Fields(body)
    messages = read_messages(fields.take("messages"))
    variables = fields.object("chat_template_kwargs")
    common = _read_common(fields, top_logprobs=_read_top_logprobs(fields))
    fields.finish(_CHAT_NEUTRAL)
    return ChatRequest(common, messages, variables)


def read_prompts(value: Any, *, vocab_size: int) -> list[str | bytes]:
    """One or more prompts, each a text or a list of token ids."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > MAX_PROMPTS:
            raise InvalidRequest(
                f"prompt may hold at most {MAX_PROMPTS} prompts, not {len(value)}", field="prompt"
            )
        return [_read_prompt(one, f"prompt[{i}]", vocab_size) for i, one in enumerate(value)]
    return [_read_prompt(value, "prompt", vocab_size)]


def read_token_ids(value: Any, *, vocab_size: int, field: str) -> bytes:
    """A list of token ids, packed."""
    if not isinstance(value, list):
        raise InvalidRequest(
            f"{field} must be a list of token ids, not {shown(value)}", field=field
        )
    # The common case is settled without a loop in Python: prompts may be long.
    if set(map(type, value)) <= {int} and (
        not value or (min(value) >= 0 and max(value) < vocab_size)
    ):
        return pack_tokens(value)
    i = next(i for i, token in enumerate(value) if not _is_token(token, vocab_size))
    raise InvalidRequest(
        f"{field}[{i}] must be a token id from 0 to {vocab_size - 1}, not {shown(value[i])}",
        field=f"{field}[{i}]",
    )


def _is_token(value: Any, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size


def _read_prompt(value: Any, path: str, vocab_size: int) -> str | bytes:
    if isinstance(value, str):
        prompt: str | bytes = value
    elif isinstance(value, list):
        prompt = read_token_ids(value, vocab_size=vocab_size, field=path)
    else:
        raise InvalidRequest(
            f"{path} must be a string or a list of token ids, not {shown(value)}", field=path
        )
    if not prompt:
        raise InvalidRequest(f"{path} must not be empty", field=path)
    return prompt


def _read_top_logprobs(fields: Fields) -> int | None:
    """Of a chat: how many of the likeliest tokens, None where no log probability is asked for."""
    asked, num_top = fields.boolean("logprobs"), fields.integer("top_logprobs")
    if num_top and not asked:
        raise InvalidRequest(
            "top_logprobs is only allowed when logprobs is true", field="top_logprobs"
        )
    return (num_top or 0) if asked else None


def _read_common(
    fields: Fields,
    *,
    num_prompts: int = 1,
    top_logprobs: int | None,
    top_logprobs_field: str = "top_logprobs",
) -> CommonFields:
    stream = fields.boolean("stream")
    max_tokens, max_tokens_field = _read_max_tokens(fields)
    sampling = _read_sampling(fields, max_tokens=max_tokens, top_logprobs=top_logprobs)
    check_sampling(
        sampling, max_tokens_field=max_tokens_field, top_logprobs_field=top_logprobs_field
    )
    stop = _read_stop(fields)
    priority = fields.integer("priority") or 0
    check_priority(priority)
    namespace = fields.string("cache_salt")
    check_name(namespace, field="cache_salt")
    user = fields.string("user")
    check_name(user, field="user")
    return CommonFields(
        model=fields.string("model"),
        stream=stream,
        include_usage=_read_include_usage(fields, stream=stream),
        num_choices=_read_num_choices(fields, num_prompts),
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        priority=priority,
        namespace=namespace,
        user=user,
        ttft_slo_seconds=_read_slo(fields, "ttft_slo_seconds"),
        tbt_slo_seconds=_read_slo(fields, "tbt_slo_seconds"),
    )


def _read_slo(fields: Fields, name: str) -> float | None:
    seconds = fields.number(name, default=None)
    check_slo(seconds, field=name)
    return seconds


def _read_num_choices(fields: Fields, num_prompts: int) -> int:
    num_choices = fields.integer("n")
    if num_choices is None:
        return 1
    most = MAX_CHOICES // num_prompts
    if not 1 <= num_choices <= most:
        each = f" for each of {num_prompts} prompts" if num_prompts > 1 else ""
        raise InvalidRequest(
            f"n must be from 1 to {most}{each}, not {num_choices}: "
            f"one answer holds at most {MAX_CHOICES} choices",
            field="n",
        )
    return num_choices


def _read_max_tokens(fields: Fields) -> tuple[int | None, str]:
    """The limit, and the name under which it came."""
    old, new = fields.integer("max_tokens"), fields.integer("max_completion_tokens")
    if new is None:
        return old, "max_tokens"
    if old is not None and old != new:
        raise InvalidRequest(
            f"max_completion_tokens ({new}) and max_tokens ({old}) contradict each other: "
            "send one of them",
            field="max_completion_tokens",
        )
    return new, "max_completion_tokens"


def _read_sampling(
    fields: Fields, *, max_tokens: int | None, top_logprobs: int | None
) -> SamplingParams:
    seed = fields.integer("seed")
    if seed is None:
        seed = secrets.randbits(63)
    elif -(2**63) <= seed < 0:
        seed += 2**64  # OpenAI's seeds are signed.
    top_k = fields.integer("top_k") or 0
    return SamplingParams(
        max_tokens=1 if max_tokens is None else max_tokens,
        temperature=fields.number("temperature", default=1.0),
        top_p=fields.number("top_p", default=1.0),
        top_k=0 if top_k == -1 else top_k,
        seed=seed,
        ignore_eos=fields.boolean("ignore_eos"),
        stop_token_ids=_read_stop_token_ids(fields),
        top_logprobs=top_logprobs,
        presence_penalty=fields.number("presence_penalty", default=0.0),
        frequency_penalty=fields.number("frequency_penalty", default=0.0),
    )


def _read_stop_token_ids(fields: Fields) -> tuple[int, ...]:
    value = fields.take("stop_token_ids")
    if value is None:
        return ()
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise fields.wrong("stop_token_ids", "a list of token ids", value)
    return tuple(value)


def _read_stop(fields: Fields) -> tuple[str, ...]:
    value = fields.take("stop")
    if value is None:
        return ()
    stop = [value] if isinstance(value, str) else value
    if not isinstance(stop, list) or not set(map(type, stop)) <= {str}:
        raise fields.wrong("stop", "a string or a list of strings", value)
    check_stop(stop)
    return tuple(stop)


def _read_include_usage(fields: Fields, *, stream: bool) -> bool:
    options = fields.take("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise fields.wrong("stream_options", "an object", options)
    if not stream:
        raise InvalidRequest(
            "stream_options is only allowed when stream is true", field="stream_options"
        )
    inner = Fields(options, path="stream_options.")
    include_usage = inner.boolean("include_usage")
    inner.finish({"include_obfuscation": (False,)})
    return include_usage
