"""The cells that are done: one JSON file each in a folder, so that a run can be taken up again."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from preble.errors import ConfigError
from preble_loadgen.tournament.cell import CellFigures, CellKey


class CellStore:
    """A folder of finished cells."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ConfigError: the folder cannot be made.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {folder}: {error.strerror}") from error

    def missing(self, keys: Iterable[CellKey]) -> list[CellKey]:
        """Those of `keys` that are not done, in their order, each once."""
        wanted = dict.fromkeys(keys)
        return [key for key in wanted if not (self.folder / key.file_name).exists()]

    def put(self, cell: CellFigures) -> None:
        """Keep `cell`; a reader never sees half a file."""
        path = self.folder / cell.key.file_name
        partial = path.with_suffix(f".{os.getpid()}.part")
        partial.write_text(cell.to_json(), encoding="utf-8")
        partial.replace(path)

    def read(self, keys: Iterable[CellKey] | None = None) -> list[CellFigures]:
        """The finished cells of `keys`, or all of them, by file name.

        Raises:
            ConfigError: a file is not what this version writes.
        """
        if keys is None:
            paths = sorted(self.folder.glob("*.json"))
        else:
            paths = [self.folder / key.file_name for key in dict.fromkeys(keys)]
        return [self._read(path) for path in paths if path.exists()]

    def _read(self, path: Path) -> CellFigures:
        try:
            return CellFigures.from_json(path.read_bytes())
        except (json.JSONDecodeError, TypeError, KeyError, ValueError) as error:
            raise ConfigError(
                f"{path} is no cell of this version of the tournament ({error}); remove it"
            ) from error
