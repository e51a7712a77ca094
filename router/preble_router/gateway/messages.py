"""The messages of a chat: roles and text. Images, sound and tool calls are refused by name."""

from typing import Any

from preble.errors import InvalidRequest
from preble_router.gateway.fields import Fields, shown

ROLES = ("system", "developer", "user", "assistant", "tool")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # An answer of the API can be sent back as it came.
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": ("",),
    "refusal": (),
    "tool_calls": ([],),
}


def read_messages(value: Any) -> list[dict[str, str]]:
    """Messages as chat templates want them: `role`, `content` as one string, and, where given,
    `name` and `tool_call_id`."""
    if not isinstance(value, list) or not value:
        raise InvalidRequest(
            f"messages must be a list of at least one message, not {shown(value)}", field="messages"
        )
    return [_read_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def _read_message(message: Any, path: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{path} must be an object, not {shown(message)}", field=path)
    fields = Fields(message, path=path + ".")
    role = fields.take("role")
    if role not in ROLES:
        raise fields.wrong("role", "one of " + ", ".join(ROLES), role)
    content = fields.take("content")
    names = {name: text for name in ("name", "tool_call_id") if (text := fields.string(name))}
    # Before the content, which is null in a message that calls tools.
    fields.finish(_NEUTRAL)
    return {"role": role, "content": _read_content(content, path + ".content"), **names}


def _read_content(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{path} must be a string or a list of text parts, not {shown(content)}", field=path
        )
    return "\n".join([_read_part(part, f"{path}[{i}]") for i, part in enumerate(content)])


def _read_part(part: Any, path: str) -> str:
    if not isinstance(part, dict):
        raise InvalidRequest(f"{path} must be an object, not {shown(part)}", field=path)
    fields = Fields(part, path=path + ".")
    kind = fields.take("type")
    if kind != "text":
        raise fields.wrong("type", '"text", the only kind of part that is supported', kind)
    text = fields.take("text")
    if not isinstance(text, str):
        raise fields.wrong("text", "a string", text)
    fields.finish({})
    return text
