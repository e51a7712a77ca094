"""Sessions of agents, JSONL: a line is a call of a model within a session.

    {"s": 0, "k": 1, "t": 15.0, "th": 2.0, "in": 12385, "out": 263, "h": [[0, 193]], "c": "x"}

`s` session, `k` turn, `t` seconds since the session's first call, `th` think time before the call
(both null where there was no clock), `in` and `out` tokens, `h` runs [first, number] of ids of the
prompt's full blocks, chained: equal ids follow equal prefixes. Blocks are of 16 or 64 tokens, as
the lengths tell; the tokens after the last one belong to the call alone. A call that was broken off
before its first token counts as one of a single token. `c` is ignored.

Sessions have no common clock. They begin at random, one every `SESSION_GAP_SECONDS` on average, the
same way every time. Within a session the loop is closed: the next call waits for the last answer.

A block follows the same block wherever it occurs, so a run begins at the same id wherever it
occurs: it is one segment, named by its first block.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

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

BLOCK_TOKENS = 64
"""Of the larger traces. Scaled blocks of 16 tokens cannot be whole pages in any case."""
SESSION_GAP_SECONDS = 30.0
TURN_SECONDS = 1.0
"""Estimate of a turn's duration where there was no clock."""
_BLOCK_SIZES = (64, 16)


@dataclass(frozen=True, slots=True)
class _Call:
    session: int
    turn: int
    since_start: float | None
    think_seconds: float
    input_length: int
    output_length: int
    runs: tuple[tuple[int, int], ...]
    block_tokens: int


def recognises(first_line: str) -> bool:
    """Whether a file that begins so is of this format."""
    return first_line.lstrip().startswith("{") and all(
        f'"{name}"' in first_line for name in ("s", "k", "in", "out", "h")
    )


def salt(first_line: str, file: str) -> int:
    """Block ids mean something within one file only."""
    return xxhash.xxh32_intdigest(PurePath(file).name.removesuffix(".gz").encode())


def read(lines: Lines, bad_lines: BadLines) -> Iterator[TraceRequest]:
    """The calls of all sessions, in the order in which they would come if no answer were late."""
    rng = random.Random(0)
    began_at: dict[int, float] = {}
    last: dict[int, tuple[int, float]] = {}
    next_start = 0.0
    requests = []
    for line, call in bad_lines.parsed(lines, _parse):
        if call.session not in began_at:
            began_at[call.session] = next_start
            next_start += rng.expovariate(1 / SESSION_GAP_SECONDS)
        turn, at = last.get(call.session, (-1, began_at[call.session]))
        if call.turn != turn + 1:
            bad_lines.found(line, f"turn {call.turn} of its session follows turn {turn}")
            continue
        since_start = call.turn * TURN_SECONDS if call.since_start is None else call.since_start
        at = max(at, began_at[call.session] + since_start)
        last[call.session] = call.turn, at
        requests.append(_request(call, line=line, at=at))
    requests.sort(key=lambda request: request.at)
    began_first_at = requests[0].at if requests else 0.0
    for index, request in enumerate(requests):
        yield _placed(request, index, request.at - began_first_at)


def _placed(request: TraceRequest, index: int, at: float) -> TraceRequest:
    return TraceRequest(
        index=index,
        line=request.line,
        at=at,
        segments=request.segments,
        output_tokens=request.output_tokens,
        session=request.session,
        turn=request.turn,
        think_seconds=request.think_seconds,
    )


def _parse(line: str) -> _Call:
    row = json_object(line)
    input_length = integer(required(row, "in"), "in", low=1)
    runs = _runs(required(row, "h"))
    num_blocks = sum(number for _, number in runs)
    fitting = [size for size in _BLOCK_SIZES if input_length // size == num_blocks]
    if not fitting:
        sizes = " or ".join(map(str, _BLOCK_SIZES))
        raise BadLine(f"h has {num_blocks} blocks, of {sizes} tokens, for {input_length} tokens")
    return _Call(
        session=integer(required(row, "s"), "s", low=0),
        turn=integer(required(row, "k"), "k", low=0),
        since_start=_optional_seconds(row, "t"),
        think_seconds=_optional_seconds(row, "th") or 0.0,
        input_length=input_length,
        output_length=max(1, integer(required(row, "out"), "out", low=0)),
        runs=runs,
        block_tokens=fitting[0],
    )


def _optional_seconds(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    return None if value is None else seconds(value, name)


def _runs(value: object) -> tuple[tuple[int, int], ...]:
    """The runs, each as long as it goes."""
    if not isinstance(value, list):
        raise BadLine("h must be a list")
    runs: list[tuple[int, int]] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadLine(f"h has [first, number], not {pair!r}")
        first = integer(pair[0], "h", low=0, high=MAX_NODE_ID)
        number = integer(pair[1], "h", low=1)
        if runs and first == sum(runs[-1]):
            first, number = runs[-1][0], runs[-1][1] + number
            runs.pop()
        runs.append((first, number))
    return tuple(runs)


def _request(call: _Call, *, line: int, at: float) -> TraceRequest:
    segments = [Segment(first, number * call.block_tokens) for first, number in call.runs]
    if tail := call.input_length % call.block_tokens:
        segments.append(Segment(PRIVATE_ID + line, tail))
    return TraceRequest(
        index=0,
        line=line,
        at=at,
        segments=tuple(segments),
        output_tokens=call.output_length,
        session=str(call.session),
        turn=call.turn,
        think_seconds=call.think_seconds if call.turn else None,
    )
