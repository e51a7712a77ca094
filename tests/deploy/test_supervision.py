"""Child processes under supervision: real ones, small enough to start at once."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from preble.errors import ConfigError
from preble_deploy import supervision
from preble_deploy.supervision import Program, SupervisedProcess, backoff_seconds

Lines = list[str]


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_BACKOFF_SECONDS", 0.01)


def program(code: str, *, essential: bool = False) -> Program:
    return Program(
        name="child",
        command=(sys.executable, "-u", "-c", textwrap.dedent(code)),
        variables=dict(os.environ),
        essential=essential,
    )


@contextlib.asynccontextmanager
async def supervised(what: Program) -> AsyncIterator[tuple[SupervisedProcess, Lines]]:
    lines: Lines = []
    process = SupervisedProcess(what, lambda _, line: lines.append(line))
    task = asyncio.create_task(process.run())
    try:
        yield process, lines
    finally:
        process.kill()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """A process that nobody waited for yet is not running either."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


FOREVER = "import time; print('up'); time.sleep(600)"


async def test_output_arrives_line_by_line_whatever_the_child_writes() -> None:
    code = r"""
        import sys, time
        out = sys.stdout.buffer
        out.write(b"one\ntw"); out.flush(); time.sleep(0.05)
        out.write(b"o\n\xff\n" + b"x" * 200_000 + b"\nlast"); out.flush()
    """
    async with supervised(program(code)) as (process, lines):
        await until(lambda: any("ended with status 0" in line for line in lines))
    assert lines[:3] == ["one", "two", "\ufffd"]
    assert "".join(lines[3:-2]) == "x" * 200_000
    assert lines[-2] == "last"
    assert process.restarts_total == 0


async def test_killed_child_is_started_again() -> None:
    async with supervised(program(FOREVER)) as (process, lines):
        await until(lambda: "up" in lines)
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: lines.count("up") == 2)
        assert process.pid not in (None, first)
        assert process.restarts_total == 1
        assert any("ended with SIGKILL" in line for line in lines)


async def test_child_asked_to_end_is_not_started_again_unless_it_is_essential() -> None:
    async with supervised(program("print('done')")) as (process, lines):
        await until(lambda: any("status 0" in line for line in lines))
        await asyncio.sleep(0.1)
        assert process.restarts_total == 0
    async with supervised(program("print('done')", essential=True)) as (process, lines):
        await until(lambda: process.restarts_total >= 2)


async def test_failures_in_a_row_are_counted_and_back_off() -> None:
    async with supervised(program("raise SystemExit(1)")) as (process, _):
        await until(lambda: process.failures_in_a_row >= 3)
    assert [backoff_seconds(n) for n in (1, 2, 3)] == [0.01, 0.02, 0.04]
    assert backoff_seconds(1000) <= supervision.MAX_BACKOFF_SECONDS


async def test_refused_options_are_not_tried_again() -> None:
    code = "import sys; print('preble: --port is 99999; allowed: less'); sys.exit(2)"
    process = SupervisedProcess(program(code), lambda *_: None)
    with pytest.raises(ConfigError, match=r"child cannot start: --port is 99999; allowed: less"):
        await process.run()


async def test_terminate_lets_the_child_finish_its_work() -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("finished"), sys.exit(0)))
        print("up")
        time.sleep(600)
    """
    async with supervised(program(code, essential=True)) as (process, lines):
        await until(lambda: "up" in lines)
        process.terminate()
        await until(lambda: "finished" in lines)
        await until(lambda: process.pid is None)
        assert process.restarts_total == 0


async def test_kill_reaches_what_the_child_started() -> None:
    code = f"""
        import subprocess, sys, time
        print(subprocess.Popen([sys.executable, "-c", {FOREVER!r}]).pid)
        time.sleep(600)
    """
    async with supervised(program(code)) as (process, lines):
        await until(lambda: lines and lines[0].isdigit())
        grandchild = int(lines[0])
        assert is_running(grandchild)
        process.kill()
        await until(lambda: not is_running(grandchild))


def test_child_ends_when_its_launcher_is_killed() -> None:
    child = "from preble_deploy.lifeline import end_with_parent; end_with_parent();" + FOREVER
    launcher = f"""
import asyncio, os, sys
from preble_deploy.supervision import Program, SupervisedProcess
program = Program(name="c", command=(sys.executable, "-uc", {child!r}), variables=dict(os.environ))
process = SupervisedProcess(program, lambda _, line: print(process.pid, flush=True))
asyncio.run(process.run())
"""
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        asyncio.run(until(lambda: not is_running(pid)))
