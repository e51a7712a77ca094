"""What `preble serve` prints: progress, the log lines of every process, the address at the end.

On a terminal the progress is one line that changes in place; elsewhere each step is a line.
"""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta")


class Terminal:
    """Prints, and goes on without printing once the reader has gone away."""

    def __init__(self, names: Sequence[str], file: TextIO | None = None) -> None:
        self._console = Console(file=file or sys.stdout, highlight=False)
        self._width = max((len(name) for name in names), default=0)
        self._colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
        self._status: Status | None = None
        self._last_step = ""
        self._broken = False

    def log(self, name: str, line: str) -> None:
        """One log line of the process `name`."""
        text = Text(f"{name:<{self._width}} | ", style=self._colours.get(name, ""))
        # The child's own colours are kept, any other control is not.
        self._print(text.append_text(Text.from_ansi(line)))

    def say(self, line: str) -> None:
        """One line, or several, of the launcher itself."""
        self._print(Text(line))

    def step(self, words: str) -> None:
        """What is being waited for."""
        if words == self._last_step:
            return
        self._last_step = words
        if not self._console.is_terminal:
            self.say(f"preble: {words}")
        elif self._status is None:
            self._status = self._console.status(words)
            self._status.start()
        else:
            self._status.update(words)

    def done(self) -> None:
        """Ends the progress."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: Text) -> None:
        if self._broken:
            return
        try:
            self._console.print(text, soft_wrap=True)
            self._console.file.flush()
        except (BrokenPipeError, ValueError):  # ValueError: the file was closed.
            self._broken = True
