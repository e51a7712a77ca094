"""Mooncake JSONL: `{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}`.

Each hash id is a block of 512 prompt tokens, chained: equal ids follow equal prefixes. The last
block may be partial; its tokens belong to the request alone. Timestamps tick every three seconds in
the published files; requests of one tick are spread over it at random, the same way every time.
https://github.com/kvcache-ai/Mooncake describes the traces.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath

import xxhash

from preble_loadgen.formats.lines import (
    MAX_NODE_ID,
    BadLine,
    BadLines,
    Lines,
    integer,
    json_object,
    required,
    seconds,
)
from preble_loadgen.trace_request import PRIVATE_ID, Segment, TraceRequest

BLOCK_TOKENS = 512
TICK_SECONDS = 3.0
"""Longest stretch over which requests of one timestamp are spread."""


@dataclass(frozen=True, slots=True)
class _Row:
    at: float
    input_length: int
    output_length: int
    blocks: tuple[int, ...]


def recognises(first_line: str) -> bool:
    """Whether a file that begins so is of this format."""
    return first_line.lstrip().startswith("{") and '"hash_ids"' in first_line


def salt(first_line: str, file: str) -> int:
    """Block ids mean something within one file only."""
    return xxhash.xxh32_intdigest(PurePath(file).name.removesuffix(".gz").encode())


def read(lines: Lines, bad_lines: BadLines) -> Iterator[TraceRequest]:
    """The requests, arrivals spread within their tick."""
    rows = bad_lines.parsed(lines, _parse)
    ticks = ((at, list(tick)) for at, tick in groupby(rows, key=lambda row: row[1].at))
    began_at: float | None = None
    index = 0
    tick = next(ticks, None)
    while tick is not None:
        (at, members), tick = tick, next(ticks, None)
        began_at = at if began_at is None else began_at
        width = TICK_SECONDS if tick is None else min(max(tick[0] - at, 0.0), TICK_SECONDS)
        for (line, row), offset in zip(members, _offsets(members, at, width), strict=True):
            yield _request(row, line=line, index=index, at=at + offset - began_at)
            index += 1


def _offsets(members: Sequence[object], at: float, width: float) -> list[float]:
    """Where in the tick that begins at `at` its members arrive; a lone one at its beginning."""
    if len(members) == 1:
        return [0.0]
    rng = random.Random(round(at * 1000))
    return sorted(rng.random() * width for _ in members)


def _parse(line: str) -> _Row:
    row = json_object(line)
    input_length = integer(required(row, "input_length"), "input_length", low=1)
    blocks = required(row, "hash_ids")
    if not isinstance(blocks, list):
        raise BadLine("hash_ids must be a list")
    if len(blocks) != -(-input_length // BLOCK_TOKENS):
        raise BadLine(
            f"hash_ids has {len(blocks)} blocks of {BLOCK_TOKENS} tokens, "
            f"which do not make an input_length of {input_length}"
        )
    return _Row(
        at=seconds(required(row, "timestamp"), "timestamp") / 1000,
        input_length=input_length,
        output_length=integer(required(row, "output_length"), "output_length", low=1),
        blocks=tuple(integer(block, "hash_ids", low=0, high=MAX_NODE_ID) for block in blocks),
    )


def _request(row: _Row, *, line: int, index: int, at: float) -> TraceRequest:
    num_full, tail = divmod(row.input_length, BLOCK_TOKENS)
    segments = [Segment(block, BLOCK_TOKENS) for block in row.blocks[:num_full]]
    if tail:
        segments.append(Segment(PRIVATE_ID + line, tail))
    return TraceRequest(
        index=index,
        line=line,
        at=at,
        segments=tuple(segments),
        output_tokens=row.output_length,
    )
