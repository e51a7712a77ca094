"""Lines of a trace file, and what becomes of those that are bad."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import orjson

from preble.errors import ConfigError

Row = TypeVar("Row")
Lines = Iterable[tuple[int, str]]
"""(line number from 1, line)."""

MAX_LENGTH = 2**31 - 1
MAX_NODE_ID = 2**31 - 1


class BadLine(ValueError):
    """A line cannot be used. The message says why, and leaves file and number to the caller."""


class BadLines:
    """The first bad line is an error, unless they are to be skipped: then they are counted.

    Attributes:
        file: name for messages.
        skip: whether to go on.
        num_skipped: so far.
        first: message of the first one skipped, "" for none.
    """

    def __init__(self, file: str, *, skip: bool = False) -> None:
        self.file = file
        self.skip = skip
        self.num_skipped = 0
        self.first = ""

    def found(self, line: int, reason: str) -> None:
        """Counts a bad line.

        Raises:
            ConfigError: bad lines are not skipped.
        """
        message = f"{self.file}:{line}: {reason}"
        if not self.skip:
            raise ConfigError(message)
        self.num_skipped += 1
        self.first = self.first or message

    def parsed(self, lines: Lines, parse: Callable[[str], Row]) -> Iterator[tuple[int, Row]]:
        """(line number, `parse(line)`) of the lines that are neither blank nor bad."""
        for number, line in lines:
            if not line.strip():
                continue
            try:
                row = parse(line)
            except BadLine as bad:
                self.found(number, str(bad))
                continue
            yield number, row


def json_object(line: str) -> dict[str, Any]:
    """The line as a JSON object."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadLine("not a JSON object")
    return value


def integer(value: object, name: str, *, low: int, high: int = MAX_LENGTH) -> int:
    """`value` where it is an integer within the bounds; text of one, as CSV has it, too."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadLine(f"{name} must be an integer, not {value!r}")
    if not low <= value <= high:
        raise BadLine(f"{name} must lie in {low} ... {high}, not {value}")
    return value


def seconds(value: object, name: str) -> float:
    """`value` where it is a time, finite and not negative."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e15:
        raise BadLine(f"{name} must be a number of at least 0, not {value!r}")
    return float(value)


def required(row: dict[str, Any], name: str) -> object:
    """A field that must be there."""
    if name not in row:
        raise BadLine(f"{name} is missing")
    return row[name]


def decimal_seconds(text: str, name: str) -> float:
    """The time that the text of a CSV cell states."""
    try:
        value = float(text)
    except ValueError:
        raise BadLine(f"{name} must be a number of at least 0, not {text!r}") from None
    return seconds(value, name)


def csv_cells(line: str) -> list[str]:
    """The cells of one line of CSV, without the blanks around them."""
    return [cell.strip() for cell in next(csv.reader([line.strip("\r\n\ufeff")]), [])]


def columns(lines: Iterator[tuple[int, str]], names: Sequence[str], bad: BadLines) -> list[int]:
    """Where the columns stand that the header, taken from `lines`, must have.

    Raises:
        ConfigError: it lacks one, whether or not bad lines are skipped.
    """
    number, header = next(lines, (1, ""))
    cells = csv_cells(header)
    for name in names:
        if name not in cells:
            BadLines(bad.file).found(number, f"the header has no column {name}")
    return [cells.index(name) for name in names]
