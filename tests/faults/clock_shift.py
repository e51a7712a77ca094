"""Processes whose wall clocks a test moves; see `clock_shift.c`."""

import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_SECONDS_BYTES = 8


class ShiftedClocks:
    """A clock per process name, in `directory`.

    Raises:
        FileNotFoundError: there is no C compiler here.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._library = directory / "clock_shift.so"
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError("a C compiler (gcc or cc)")
        build = (compiler, "-shared", "-fPIC", "-O2", "-o", self._library, _SOURCE, "-ldl")
        subprocess.run(build, check=True)

    def environment(self, name: str) -> dict[str, str]:
        """What the process is to be started with; its clock is right at first."""
        self.shift(name, 0)
        return {"LD_PRELOAD": str(self._library), "CLOCK_SHIFT": str(self._file(name))}

    def shift(self, name: str, seconds: int) -> None:
        """From now on the clock of `name` is so many seconds ahead."""
        with self._file(name).open("r+b" if self._file(name).exists() else "wb") as file:
            file.write(seconds.to_bytes(_SECONDS_BYTES, "little", signed=True))

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.clock"
