"""Typed reading of a JSON object: each field once, and nothing left over at the end."""

from collections.abc import Mapping
from typing import Any, overload

import orjson

from preble.errors import InvalidRequest

_SHOWN_CHARS = 80


class Fields:
    """The fields of a request's body that have not been read yet. null is the same as absent.

    Args:
        body: is used up.
        path: how the caller finds the object, "" for the body itself, else e.g. "messages[2].".
    """

    def __init__(self, body: dict[str, Any], *, path: str = "") -> None:
        self._rest = body
        self._path = path

    def take(self, name: str) -> Any:
        """The field's value as it is, None if absent."""
        return self._rest.pop(name, None)

    def integer(self, name: str) -> int | None:
        """A whole number; 1.0 is none."""
        value = self.take(name)
        if value is not None and type(value) is not int:
            raise self.wrong(name, "an integer", value)
        return value

    @overload
    def number(self, name: str, *, default: float) -> float: ...

    @overload
    def number(self, name: str, *, default: None) -> float | None: ...

    def number(self, name: str, *, default: float | None) -> float | None:
        """A number, whole or not."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not float and type(value) is not int:
            raise self.wrong(name, "a number", value)
        return float(value)

    def boolean(self, name: str, *, default: bool = False) -> bool:
        """true or false."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.wrong(name, "true or false", value)
        return value

    def string(self, name: str, *, default: str = "") -> str:
        """A string."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not str:
            raise self.wrong(name, "a string", value)
        return value

    def object(self, name: str) -> dict[str, Any]:
        """An object, empty if absent."""
        value = self.take(name)
        if value is None:
            return {}
        if type(value) is not dict:
            raise self.wrong(name, "an object", value)
        return value

    def finish(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse every field that was not read.

        Args:
            neutral: fields of the API that are not supported, and the values which ask for nothing.
        """
        for name, value in self._rest.items():
            if value is None and name in neutral:
                continue
            if name not in neutral:
                raise InvalidRequest(f"unknown field {self._path}{name}", field=self._path + name)
            if not any(type(value) is type(same) and value == same for same in neutral[name]):
                raise InvalidRequest(
                    f"{self._path}{name} is not supported: leave it out"
                    + (f", or send {shown(neutral[name][0])}" if neutral[name] else "")
                    + f", not {shown(value)}",
                    field=self._path + name,
                )

    def wrong(self, name: str, wanted: str, value: Any) -> InvalidRequest:
        """The error of a field that is not what it must be."""
        return InvalidRequest(
            f"{self._path}{name} must be {wanted}, not {shown(value)}", field=self._path + name
        )


def shown(value: Any) -> str:
    """A value in an error message, as JSON, cut where it becomes long."""
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # It reads deeper nesting than it writes.
        return "a deeply nested value"
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
