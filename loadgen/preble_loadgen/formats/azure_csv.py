"""Azure's LLM inference traces: CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens.

Lengths and arrivals only: no two prompts share anything. Other columns are ignored.
https://github.com/Azure/AzurePublicDataset describes the traces.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import PurePath

import xxhash

from preble_loadgen.formats.lines import BadLine, BadLines, Lines, columns, csv_cells, integer
from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest

BLOCK_TOKENS = 0
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def recognises(first_line: str) -> bool:
    """Whether a file that begins so is of this format."""
    return set(_COLUMNS) <= set(csv_cells(first_line))


def salt(first_line: str, file: str) -> int:
    """Nothing is shared between files either."""
    return xxhash.xxh32_intdigest(PurePath(file).name.removesuffix(".gz").encode())


def read(lines: Lines, bad_lines: BadLines) -> Iterator[TraceRequest]:
    """The requests. A bad header is an error even where bad lines are skipped."""
    rest = iter(lines)
    places = columns(rest, _COLUMNS, bad_lines)
    rows = [*bad_lines.parsed(rest, lambda line: _parse(csv_cells(line), places))]
    rows.sort(key=lambda row: row[1][0])  # the published files are not quite in order
    began_at = rows[0][1][0] if rows else 0.0
    for index, (line, (at, prompt, output)) in enumerate(rows):
        yield TraceRequest(
            index=index,
            line=line,
            at=at - began_at,
            segments=(Segment(PRIVATE_ID + line, prompt),),
            output_tokens=output,
        )


def _parse(cells: list[str], places: list[int]) -> tuple[float, int, int]:
    if len(cells) <= max(places):
        raise BadLine(f"{len(cells)} cells, at least {max(places) + 1} needed")
    timestamp, prompt, output = (cells[place] for place in places)
    return (
        _unix_seconds(timestamp),
        integer(prompt, "ContextTokens", low=1),
        integer(output, "GeneratedTokens", low=1),
    )


def _unix_seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadLine(f"TIMESTAMP is not a date and time: {text!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
