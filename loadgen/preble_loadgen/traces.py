"""The one door to trace files: opens, recognises the format, reads and scales.

Formats: Mooncake JSONL, our own JSONL, agent sessions, Azure CSV and ServeGen CSV, each described
at the head of its file in formats/. Any of them may be gzipped; both facts are told by content, not
by the file's name.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from preble.errors import ConfigError
from preble_loadgen.formats import agent_sessions, azure_csv, mooncake, preble_jsonl, servegen_csv
from preble_loadgen.formats.lines import BadLines
from preble_loadgen.scaling import fitting_factor, scaled
from preble_loadgen.trace_request import TraceRequest

FORMATS = {
    "mooncake": mooncake,
    "preble": preble_jsonl,
    "agents": agent_sessions,
    "azure": azure_csv,
    "servegen": servegen_csv,
}
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in order of arrival, the first at second 0.

    Attributes:
        name: the file's name.
        format: a key of `FORMATS`.
        salt: for `PromptMaker`.
        block_tokens: of the file's blocks, before scaling; 0 for a format without blocks.
        factor: by which lengths were divided.
        num_skipped: bad lines left out. first_skipped: what was wrong with the first.
    """

    name: str
    format: str
    salt: int
    block_tokens: int
    requests: tuple[TraceRequest, ...]
    factor: float = 1.0
    num_skipped: int = 0
    first_skipped: str = ""

    def scaled(self, factor: float) -> "Trace":
        """The same with all lengths divided by `factor`."""
        requests = tuple(scaled(request, factor) for request in self.requests)
        return replace(self, requests=requests, factor=self.factor * factor)

    def capped(self, output_tokens: int) -> "Trace":
        """The same with no output longer than `output_tokens`."""
        requests = tuple(
            replace(request, output_tokens=min(request.output_tokens, output_tokens))
            for request in self.requests
        )
        return replace(self, requests=requests)

    def first(self, num_requests: int) -> "Trace":
        """Its first `num_requests` requests."""
        return replace(self, requests=self.requests[:num_requests])

    def fitted(self, context_tokens: int) -> "Trace":
        """The same scaled down, if need be, so that every request fits a model of that context.

        Raises:
            ConfigError: not even one token each makes them fit.
        """
        factor = fitting_factor(self.requests, context_tokens, block_tokens=self.block_tokens)
        return self.scaled(factor)


def load_trace(
    path: Path, *, format: str | None = None, limit: int | None = None, skip_bad_lines: bool = False
) -> Trace:
    """Reads the first `limit` requests of a trace file.

    Args:
        format: a key of `FORMATS`; None to tell by content.
        skip_bad_lines: leave out lines that cannot be used, and count them.

    Raises:
        ConfigError: the file cannot be read, its format is not known, a line is bad (then the
            message has file, line number and reason), or it has no requests.
    """
    bad_lines = BadLines(str(path), skip=skip_bad_lines)
    with _opened(path) as lines:
        first = next(lines, None)
        if first is None:
            raise ConfigError(f"{path} is empty")
        name = _recognised(first[1], path) if format is None else _known(format)
        requests = tuple(islice(_read(name, chain([first], lines), bad_lines), limit))
    if not requests:
        raise ConfigError(f"{path} has no requests" + f"; {bad_lines.first}" * bad_lines.skip)
    return Trace(
        name=path.name,
        format=name,
        salt=FORMATS[name].salt(first[1], path.name),
        block_tokens=FORMATS[name].BLOCK_TOKENS,
        requests=requests,
        num_skipped=bad_lines.num_skipped,
        first_skipped=bad_lines.first,
    )


def save_trace(trace: Trace, path: Path) -> None:
    """Writes `trace` in our own format; gzipped if the name ends in .gz.

    Raises:
        ConfigError: the file cannot be written.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "wt", encoding="utf-8") as file:
            for line in preble_jsonl.lines(trace.requests, salt=trace.salt):
                file.write(line + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def _read(
    format: str, lines: Iterator[tuple[int, str]], bad_lines: BadLines
) -> Iterator[TraceRequest]:
    """The requests in order; one that goes back in time, or follows nothing, is a bad line."""
    last_at, index = 0.0, 0
    last_turns: dict[str, int] = {}
    for request in FORMATS[format].read(lines, bad_lines):
        if wrong := _out_of_place(request, last_at, last_turns.get(request.session)):
            bad_lines.found(request.line, wrong)
            continue
        yield request if request.index == index else replace(request, index=index)
        last_at, index = request.at, index + 1
        if request.session:
            last_turns[request.session] = request.turn


def _out_of_place(request: TraceRequest, last_at: float, last_turn: int | None) -> str:
    """Why `request` cannot follow what was read so far; "" if it can."""
    if request.at < last_at:
        return "arrives before the line above it"
    if request.think_seconds is None or last_turn == request.turn - 1:
        return ""
    return f"no turn {request.turn - 1} of its session stands above it to wait for"


def _recognised(first_line: str, path: Path) -> str:
    for name, reader in FORMATS.items():
        if reader.recognises(first_line):
            return name
    raise ConfigError(
        f"{path}: its first line tells no known format; --format takes {', '.join(FORMATS)}"
    )


def _known(format: str) -> str:
    if format not in FORMATS:
        raise ConfigError(f"--format takes {', '.join(FORMATS)}, not {format!r}")
    return format


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[tuple[int, str]]]:
    """The file's lines, numbered from 1; what goes wrong while they are read is a ConfigError."""
    try:
        with path.open("rb") as raw:
            zipped = raw.peek(2)[:2] == _GZIP_MAGIC
            yield _lines(gzip.GzipFile(fileobj=raw) if zipped else raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def _lines(file: BinaryIO | gzip.GzipFile) -> Iterator[tuple[int, str]]:
    # Bytes that are not UTF-8 make their line bad, not the file.
    return ((number, line.decode(errors="replace")) for number, line in enumerate(file, 1))
