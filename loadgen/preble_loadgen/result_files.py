"""The files a run leaves: its figures as JSON, and each request as a line of JSON."""

import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import orjson

from preble import __version__
from preble.errors import ConfigError
from preble_loadgen.report import Report, RequestRecord
from preble_loadgen.report_text import report_json


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """Open before the run, so that a path that cannot be written costs no run."""

    figures: TextIO | None
    requests: TextIO | None

    def write(
        self,
        report: Report,
        records: Sequence[RequestRecord],
        *,
        about: dict[str, Any],
        secret: str = "",
    ) -> None:
        """Everything. `about` is added to command, date and versions; `secret` is left out."""
        if self.figures is not None:
            self.figures.write(report_json(report, circumstances(secret) | about))
        if self.requests is not None:
            for record in sorted(records, key=lambda record: record.index):
                self.requests.write(orjson.dumps(asdict(record), default=list).decode() + "\n")


@contextmanager
def result_files(figures: Path | None, requests: Path | None) -> Iterator[ResultFiles]:
    """Opens the files that are asked for.

    Raises:
        ConfigError: one cannot be written.
    """
    with ExitStack() as stack:
        yield ResultFiles(*(_opened(stack, path) for path in (figures, requests)))


def _opened(stack: ExitStack, path: Path | None) -> TextIO | None:
    try:
        return None if path is None else stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def circumstances(secret: str = "") -> dict[str, Any]:
    """The command without `secret`, the date and the versions: what a reader of figures asks."""
    # Where the program lies says nothing to whoever repeats the run elsewhere.
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "command": command.replace(secret, "***") if secret else command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "preble": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }
