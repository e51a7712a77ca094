"""The journal's lines in a file. A full disk ends the journal, never the service."""

import logging
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from preble.errors import ConfigError

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0


class JournalFile:
    """Takes one line after another; a file that was there is kept beside as NAME.previous.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._flush_at = 0.0
        self._broken = False
        try:
            if path.exists():
                path.rename(path.with_name(path.name + ".previous"))
            self._file = path.open("wb", buffering=1 << 16)
        except OSError as error:
            raise ConfigError(f"journal is {str(path)!r}: {error.strerror}") from error

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line, and sees to it that it is on disk a second later or with the next."""
        if self._broken:
            return
        try:
            self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            now = monotonic()
            if now >= self._flush_at:
                self._file.flush()
                self._flush_at = now + FLUSH_SECONDS
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Writes what is left."""
        try:
            self._file.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self._broken:
            _log.error("the journal %s ends here: %s", self._path, error.strerror)
        self._broken = True
