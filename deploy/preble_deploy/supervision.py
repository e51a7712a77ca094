"""Keeps child processes running: starts, restarts with backoff, passes their output on, ends them.

Each child leads its own process group. So a Ctrl-C in the terminal reaches the launcher only,
which drains in order, and a kill reaches whatever the child itself has started.
"""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from preble.errors import ConfigError, PrebleError
from preble_deploy.lifeline import PARENT_VARIABLE

WRONG_USAGE = 2
"""Exit status of a child whose options are wrong: trying again cannot help."""

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A child that lived so long is no longer in a row of failures."""

_LINE_BYTES_MAX = 1 << 16
_LEFTOVER_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run.

    Attributes:
        name: stands before each of its log lines.
        variables: its environment, complete.
        essential: start it again even after it ended with status 0, which otherwise means that
            somebody asked it to end.
    """

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str]
    essential: bool = False


class SupervisedProcess:
    """One program that is to run until `stop`.

    Attributes:
        failures_in_a_row: unexpected ends since it last lived for `STABLE_SECONDS`.
        restarts_total: times it was started again.
    """

    def __init__(self, program: Program, on_line: Callable[[str, str], None]) -> None:
        self.program = program
        self.failures_in_a_row = 0
        self.restarts_total = 0
        self._on_line = on_line
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._last_line = ""

    @property
    def pid(self) -> int | None:
        """Of the running process; None between two lives."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def run(self) -> None:
        """Runs the program again and again until it is stopped.

        Raises:
            ConfigError: the program refused its options.
        """
        while not self._stopping.is_set():
            status, lived_seconds = await self._live()
            if self._stopping.is_set():
                return
            self._say(f"ended with {_described(status)} after {lived_seconds:.1f} s")
            if status == 0 and not self.program.essential:
                return
            if status == WRONG_USAGE:
                words = self._last_line.removeprefix("preble: ")
                raise ConfigError(f"{self.program.name} cannot start: {words}")
            self.failures_in_a_row = (
                1 if lived_seconds >= STABLE_SECONDS else self.failures_in_a_row + 1
            )
            pause = backoff_seconds(self.failures_in_a_row)
            self._say(f"starts again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            self.restarts_total += 1

    def terminate(self) -> None:
        """Asks the process to finish its work and end; it is not started again."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process and all it started, at once."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    async def _live(self) -> tuple[int, float]:
        """One life of the process: its exit status and how long it was, in seconds."""
        clock = asyncio.get_running_loop().time
        started_at = clock()
        try:
            process = await asyncio.create_subprocess_exec(
                *self.program.command,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                env={**self.program.variables, PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,
            )
        except OSError as error:
            raise PrebleError(f"cannot start {self.program.name}: {error}") from error
        self._process = process
        if self._stopping.is_set():  # Told to stop while it was being started.
            self._signal(signal.SIGKILL)
        output = asyncio.create_task(self._pass_on_output(process))
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            self._signal(signal.SIGKILL)
            raise
        # A grandchild may hold the pipe open for ever.
        await asyncio.wait([output], timeout=_LEFTOVER_SECONDS)
        output.cancel()
        return status, clock() - started_at

    async def _pass_on_output(self, process: Process) -> None:
        assert process.stdout is not None
        rest = b""
        while chunk := await process.stdout.read(_LINE_BYTES_MAX):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._pass_on(line)
        if rest:
            self._pass_on(rest)

    def _pass_on(self, line: bytes) -> None:
        self._last_line = line.decode(errors="replace").rstrip()
        self._say(self._last_line)

    def _say(self, line: str) -> None:
        self._on_line(self.program.name, line)

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if number is signal.SIGTERM:
            if process.returncode is None:
                process.send_signal(number)
            return
        # To the whole group, also when its leader is gone already.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def backoff_seconds(failures: int) -> float:
    """How long to wait before the next start after so many failures in a row."""
    return float(min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (min(failures, 10) - 1)))


def _described(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    return f"status {status}"
