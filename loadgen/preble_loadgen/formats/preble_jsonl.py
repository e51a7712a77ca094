"""Our own JSONL. The first line says so; each further line is a request, in order of arrival.

    {"preble_trace": 1, "salt": 0}
    {"at": 0.0, "segments": [[0, 355], [17, 1090], [null, 320]], "output_tokens": 43}
    {"at": 0.4, "session": "a", "namespace": "acme", "token_ids": [5, 6, 7], "output_tokens": 8}

`preble_trace` is the version of the format. `salt` (0 unless given, 32 bits) sets the trace's
tokens apart from another's. `at` is in seconds. A prompt is either `token_ids`, or `segments`: a
path of nodes [id, length] of the prefix tree, whose tokens are the fixed function of id and
position in prompts.py; ids are below 2**31, and null, allowed at the end, is a node of this request
alone. `session` (text), `turn` (its place there, 0 unless given) and `namespace` (the tenant) may
be left out. `think_seconds` makes a request closed-loop: it arrives so long after the answer to the
session's turn before, which must stand above it; its `at` is an estimate. `tenant` (who is charged;
the namespace unless given) is for simulations; `ttft_slo_seconds` and `tbt_slo_seconds` are the
request's objectives. Other fields are errors.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import orjson

from preble.page_keys import pack_tokens, unpack_tokens
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

BLOCK_TOKENS = 0
VERSION = 1
_HEADER_FIELDS = {"preble_trace", "salt"}
_FIELDS = {
    "at",
    "segments",
    "token_ids",
    "output_tokens",
    "session",
    "turn",
    "think_seconds",
    "namespace",
    "tenant",
    "ttft_slo_seconds",
    "tbt_slo_seconds",
}


def recognises(first_line: str) -> bool:
    """Whether a file that begins so is of this format."""
    return first_line.lstrip().startswith("{") and '"preble_trace"' in first_line


def salt(first_line: str, file: str) -> int:
    """As the header says."""
    return _header(first_line)


def read(lines: Lines, bad_lines: BadLines) -> Iterator[TraceRequest]:
    """The requests. A bad header is an error even where bad lines are skipped."""
    rest = iter(lines)
    header = BadLines(bad_lines.file)
    list(header.parsed(islice(rest, 1), _header))
    rows = bad_lines.parsed(rest, _parse)
    first = next(rows, None)
    began_at = first[1]["at"] if first else 0.0
    for index, (line, row) in enumerate(chain([first] if first else [], rows)):
        segments = [
            Segment(PRIVATE_ID + line if node is None else node, length)
            for node, length in row["segments"]
        ]
        yield TraceRequest(
            index=index,
            line=line,
            at=row["at"] - began_at,
            segments=tuple(segments),
            token_ids=row["token_ids"],
            output_tokens=row["output_tokens"],
            session=row["session"],
            turn=row["turn"],
            think_seconds=row["think_seconds"],
            namespace=row["namespace"],
            tenant=row["tenant"],
            ttft_slo_seconds=row["ttft_slo_seconds"],
            tbt_slo_seconds=row["tbt_slo_seconds"],
        )


def lines(requests: Iterable[TraceRequest], *, salt: int = 0) -> Iterator[str]:
    """The file that holds `requests`, line by line without line ends.

    Reading it gives the same requests; nodes private to one may get another, equally private, id.
    """
    yield _json({"preble_trace": VERSION, "salt": salt})
    for request in requests:
        yield _json(_row(request))


def _row(request: TraceRequest) -> dict[str, Any]:
    row: dict[str, Any] = {"at": request.at}
    if request.token_ids:
        row["token_ids"] = unpack_tokens(request.token_ids).tolist()
    else:
        row["segments"] = [
            [None if segment.id >= PRIVATE_ID else segment.id, segment.length]
            for segment in request.segments
        ]
    row["output_tokens"] = request.output_tokens
    if request.session:
        row |= {"session": request.session, "turn": request.turn}
    if request.think_seconds is not None:
        row["think_seconds"] = request.think_seconds
    if request.namespace:
        row["namespace"] = request.namespace
    if request.tenant:
        row["tenant"] = request.tenant
    if request.ttft_slo_seconds is not None:
        row["ttft_slo_seconds"] = request.ttft_slo_seconds
    if request.tbt_slo_seconds is not None:
        row["tbt_slo_seconds"] = request.tbt_slo_seconds
    return row


def _json(row: dict[str, Any]) -> str:
    return orjson.dumps(row).decode()


def _header(line: str) -> int:
    row = json_object(line)
    version = integer(required(row, "preble_trace"), "preble_trace", low=1)
    if version != VERSION:
        raise BadLine(f"preble_trace is version {version}; this program reads {VERSION}")
    _refuse_others(row, _HEADER_FIELDS)
    return integer(row.get("salt", 0), "salt", low=0, high=2**32 - 1)


def _parse(line: str) -> dict[str, Any]:
    row = json_object(line)
    _refuse_others(row, _FIELDS)
    if ("segments" in row) == ("token_ids" in row):
        raise BadLine("a prompt is either segments or token_ids")
    return {
        "at": seconds(required(row, "at"), "at"),
        "segments": _segments(row["segments"]) if "segments" in row else [],
        "token_ids": _token_ids(row["token_ids"]) if "token_ids" in row else b"",
        "output_tokens": integer(required(row, "output_tokens"), "output_tokens", low=1),
        "session": _text(row, "session"),
        "turn": integer(row.get("turn", 0), "turn", low=0),
        "think_seconds": _optional_seconds(row, "think_seconds"),
        "namespace": _text(row, "namespace"),
        "tenant": _text(row, "tenant"),
        "ttft_slo_seconds": _slo(row, "ttft_slo_seconds"),
        "tbt_slo_seconds": _slo(row, "tbt_slo_seconds"),
    }


def _refuse_others(row: dict[str, Any], allowed: set[str]) -> None:
    unknown = sorted(set(row) - allowed)
    if unknown:
        raise BadLine(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(allowed))}")


def _segments(value: object) -> list[tuple[int | None, int]]:
    if not isinstance(value, list) or not value:
        raise BadLine("segments must be a list of [id, length], not empty")
    segments: list[tuple[int | None, int]] = []
    for position, pair in enumerate(value, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadLine(f"segment {position} must be [id, length], not {pair!r}")
        if pair[0] is None and position < len(value):
            raise BadLine(f"segment {position} has no id, which only the last may lack")
        node = None if pair[0] is None else integer(pair[0], "id", low=0, high=MAX_NODE_ID)
        segments.append((node, integer(pair[1], "length", low=1)))
    return segments


def _token_ids(value: object) -> bytes:
    if not isinstance(value, list) or not value:
        raise BadLine("token_ids must be a list of integers, not empty")
    return pack_tokens([integer(token, "token_ids", low=0, high=2**32 - 1) for token in value])


def _optional_seconds(row: dict[str, Any], name: str) -> float | None:
    return seconds(row[name], name) if name in row else None


def _slo(row: dict[str, Any], name: str) -> float | None:
    value = _optional_seconds(row, name)
    if value == 0.0:
        raise BadLine(f"{name} must be above 0, not {row[name]!r}")
    return value


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, str):
        raise BadLine(f"{name} must be text, not {value!r}")
    return value
