"""Arrivals sampled with ServeGen: CSV with the columns t_s, client, input_tokens, output_tokens.

Lengths and arrivals only: no two prompts share anything. A client is a tenant. Other columns are
ignored. https://github.com/alibaba/ServeGen describes the generator.
"""

from collections.abc import Iterator
from pathlib import PurePath

import xxhash

from preble_loadgen.formats.lines import (
    BadLine,
    BadLines,
    Lines,
    columns,
    csv_cells,
    decimal_seconds,
    integer,
)
from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest

BLOCK_TOKENS = 0
_COLUMNS = ("t_s", "client", "input_tokens", "output_tokens")


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
    began_at: float | None = None
    rows = bad_lines.parsed(rest, lambda line: _parse(csv_cells(line), places))
    for index, (line, (at, client, prompt, output)) in enumerate(rows):
        began_at = at if began_at is None else began_at
        yield TraceRequest(
            index=index,
            line=line,
            at=at - began_at,
            segments=(Segment(PRIVATE_ID + line, prompt),),
            output_tokens=output,
            namespace=client,
        )


def _parse(cells: list[str], places: list[int]) -> tuple[float, str, int, int]:
    if len(cells) <= max(places):
        raise BadLine(f"{len(cells)} cells, at least {max(places) + 1} needed")
    at, client, prompt, output = (cells[place] for place in places)
    return (
        decimal_seconds(at, "t_s"),
        client,
        integer(prompt, "input_tokens", low=1),
        integer(output, "output_tokens", low=1),
    )
