"""Settings files, and the command line in this process or in another."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from preble_deploy import cli

PREBLE = (sys.executable, "-m", "preble_deploy")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command line came to."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


def run_here(capsys: pytest.CaptureFixture[str], *words: str) -> Outcome:
    """Runs `preble words` in this process."""
    status = cli.run(words)
    captured = capsys.readouterr()
    return Outcome(status, captured.out, captured.err)


def refusal(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    entry: tuple[ModuleType, str],
    *words: str,
) -> str:
    """What `preble words` complains of; `entry` would start a cluster, and must not be reached."""

    async def started(*_: object) -> None:
        pytest.fail("a cluster was started")

    monkeypatch.setattr(*entry, started)
    outcome = run_here(capsys, *words)
    assert outcome.status == 2
    return outcome.complaint


def run_preble(*words: str) -> Outcome:
    """Runs `preble words` in a process of its own."""
    done = subprocess.run([*PREBLE, *words], capture_output=True, text=True, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


def write(path: Path, text: str) -> Path:
    """Writes a file and returns its path."""
    path.write_text(text, encoding="utf-8")
    return path
