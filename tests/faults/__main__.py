"""`make faults`: does every fault to a live cluster, and prints what came of it beside the target.

With --peer the same is done to sglang-router where it can take part, in the same run.
"""

import argparse
import asyncio
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from faults.rows import (
    clock,
    crowd,
    events,
    hang,
    kill,
    kill_often,
    leave,
    memory,
    outage,
    overload,
    partition,
    poison,
    ray_head,
    resources,
    routers,
    slow,
    soak,
    tenants,
)
from faults.trial import Outcome, Row, Trial
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

ROWS = (
    kill.ROW,
    hang.STOPPED,
    hang.BLOCKED,
    kill_often.ROW,
    poison.ROW,
    outage.ROW,
    crowd.ROW,
    slow.ROW,
    routers.ROW,
    partition.ROW,
    overload.ROW,
    leave.ROW,
    tenants.ROW,
    resources.DISK_FULL,
    resources.DESCRIPTORS,
    memory.ROW,
    clock.ROW,
    events.ROW,
    ray_head.ROW,
    soak.ROW,
)
PEER = "sglang-router"


@dataclass(frozen=True, slots=True)
class Line:
    """A row and what was seen; `peer` also says why there is nothing."""

    row: Row
    ours: Outcome
    peer: str
    seconds: float

    @property
    def cells(self) -> tuple[str, str, str, str]:
        verdict = "" if self.ours.passed else "**missed**: "
        return self.row.fault, self.row.to_reach, verdict + self.ours.seen, self.peer


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument("--only", metavar="NAME", action="append", help=f"some of: {names}")
    parser.add_argument("--quick", action="store_true", help="short forms")
    parser.add_argument(
        "--peer",
        metavar="DIR",
        type=Path,
        help=f"a virtual environment with {PEER}; it is made, and {PEER} installed, if DIR is not "
        "there",
    )
    parser.add_argument(
        "--soak-minutes", type=float, default=0.0, help="of the soak; default 3, 0.5 with --quick"
    )
    parser.add_argument(
        "--rounds", type=int, default=0, help="kills of `kill` and `kill-often`, for a part of them"
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the table here")
    options = parser.parse_args()
    unknown = set(options.only or ()) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))}: must be one of {names}")
    return options


def make_peer(directory: Path) -> Path:
    """An environment of its own, so that the peer is no dependency of ours."""
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], check=True)
    return directory.absolute()


async def run_row(row: Row, options: argparse.Namespace, progress: Progress) -> Line:
    """Ours first, then the peer."""
    task = progress.add_task(row.name, total=None, what="")
    start = time.monotonic()

    def trial(peer: Path | None) -> Trial:
        system = PEER if peer else "preble"
        return Trial(
            quick=options.quick,
            peer=peer,
            soak_minutes=options.soak_minutes,
            rounds=options.rounds,
            say=lambda what: progress.update(task, what=f"{system}: {what}"),
        )

    try:
        ours = await _measure(row, trial(None))
        peer = f"– ({row.no_peer or 'not asked for'})"
        if options.peer and not row.no_peer:
            peer = (await _measure(row, trial(options.peer))).seen
    finally:
        progress.remove_task(task)
    return Line(row, ours, peer, time.monotonic() - start)


async def _measure(row: Row, trial: Trial) -> Outcome:
    try:
        return await row.measure(trial)
    except Exception as error:
        if os.environ.get("FAULTS_DEBUG"):
            raise
        return Outcome(False, f"could not be measured: {type(error).__name__}: {error}")


async def run_rows(options: argparse.Namespace, console: Console) -> list[Line]:
    """Line after line, each printed when it is there."""
    lines = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[what]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        for row in ROWS:
            if options.only and row.name not in options.only:
                continue
            line = await run_row(row, options, progress)
            lines.append(line)
            mark = "[green]reached[/]" if line.ours.passed else "[red]missed[/] "
            console.print(f"{mark} {row.name:10} {line.seconds:4.0f} s  {line.ours.seen}")
            for failure in line.ours.failures[:5]:
                console.print(f"           {failure}", markup=False)
            if options.peer:
                console.print(f"{'':18} {PEER}: {line.peer}")
    return lines


def print_table(lines: list[Line], console: Console) -> None:
    table = Table("fault", "to reach", "preble", PEER, show_lines=True)
    for line in lines:
        table.add_row(*line.cells)
    console.print(table)


def markdown(lines: list[Line], command: str, seconds: float, peer: str) -> str:
    """The table with what it takes to make it again."""
    rows = [
        "| " + " | ".join(cell.replace("|", "/") for cell in line.cells) + " |" for line in lines
    ]
    return "\n".join(
        [
            "# What faults cost",
            "",
            f"`{command}`, {datetime.now():%Y-%m-%d %H:%M}, {machine()}, {seconds / 60:.0f} min. "
            "Four simulated workers with steps of 20 ms; every answer is compared with the text "
            f"it must be. {peer} stands before the same workers, each with an OpenAI front of its "
            "own, with its default options.",
            "",
            f"| fault | to reach | preble | {PEER} |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def peer_version(environment: Path | None) -> str:
    """Its name and version."""
    found = environment and list(environment.glob("lib/*/site-packages/sglang_router-*.dist-info"))
    return f"{PEER} {found[0].name.split('-')[1].removesuffix('.dist')}" if found else PEER


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}"


def main() -> int:
    options, console = parse(), Console()
    if options.peer:
        options.peer = make_peer(options.peer)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    try:
        lines = asyncio.run(run_rows(options, console))
    except KeyboardInterrupt:
        console.print("ended by Ctrl-C; no process is left")
        return 130
    print_table(lines, console)
    if options.markdown:
        command = " ".join(["python -m faults", *sys.argv[1:]])
        seconds = time.monotonic() - start
        options.markdown.write_text(markdown(lines, command, seconds, peer_version(options.peer)))
    return 0 if all(line.ours.passed for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
