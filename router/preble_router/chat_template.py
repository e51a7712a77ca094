"""Chat messages to prompt text, by the Jinja template that comes with a model.

Templates are written for Hugging Face's environment: sandboxed, blocks trimmed, `break` and
`continue`, and the functions `raise_exception`, `strftime_now` and `tojson`. All of that is here;
what is not: templates for tools and documents, which requests cannot carry.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from preble.errors import ConfigError, InvalidRequest

RESERVED_NAMES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""What `chat_template_kwargs` must not set; the special tokens' names too."""


class ChatTemplate:
    """One model's template.

    Args:
        source: the Jinja text.
        special_tokens: what the template knows as `bos_token`, `eos_token` and so on.

    Raises:
        ConfigError: `source` is no Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the model's chat template is broken, line {error.lineno}: {error.message}"
            ) from error
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that `messages` make.

        Args:
            add_generation_prompt: end with the opening of an assistant's turn.
            variables: further names for the template, e.g. `enable_thinking`.

        Raises:
            InvalidRequest: the template refuses the messages, or fails on them.
        """
        extra = dict(variables or {})
        for name in sorted(extra.keys() & (RESERVED_NAMES | self._special_tokens.keys())):
            raise InvalidRequest(
                f"chat_template_kwargs must not set {name!r}", field="chat_template_kwargs"
            )
        try:
            return self._template.render(
                messages=self._in_known_roles(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **extra,
            )
        except Exception as error:  # A template runs on any input; whatever it trips on is input.
            raise InvalidRequest(
                f"the model's chat template refused the messages: {error}", field="messages"
            ) from error

    def _in_known_roles(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`developer` is OpenAI's newer word for `system`; most templates know the older only."""
        known = [dict(message) for message in messages]
        for message in known:
            if message["role"] == "developer" and not self._knows_developer:
                message["role"] = "system"
        return known


class _GenerationTag(Extension):
    """`{% generation %}` marks an assistant's text for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which would change the prompt.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
