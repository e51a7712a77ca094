"""`preble tournament`: simulates the cells that are missing and writes the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from preble.errors import ConfigError
from preble_loadgen.result_files import circumstances
from preble_loadgen.tournament.cell import CellFigures, CellKey
from preble_loadgen.tournament.contests import CONTESTS, is_available
from preble_loadgen.tournament.plan import plan
from preble_loadgen.tournament.report import write_report
from preble_loadgen.tournament.run import run_missing
from preble_loadgen.tournament.scope import Scope
from preble_loadgen.tournament.store import CellStore

PLAIN_EVERY = 50
"""Cells between two lines of progress where there is no terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TournamentOptions:
    """Which cells, where they are kept, and where the report goes; `--help` explains each."""

    cells: Path
    traces: Path | None
    parts: tuple[str, ...]
    quick: bool
    jobs: int
    report_only: bool
    html: Path
    markdown: Path


def run_tournament(options: TournamentOptions) -> int:
    """Shows progress, keeps cells, writes the report.

    Returns:
        The exit status: 0 unless a request of some cell failed without a fault to explain it.

    Raises:
        ConfigError: the folder of cells, a trace or the report's files cannot be used.
    """
    console = Console(stderr=True, highlight=False)
    _check_writable(options)
    store = CellStore(options.cells)
    traces = options.traces
    scope = Scope(
        has=lambda contest: is_available(contest, traces),
        has_file=lambda name: traces is not None and (traces / name).exists(),
        quick=options.quick,
    )
    keys = plan(scope, options.parts)
    _tell_left_out(scope, console)
    if not options.report_only:
        _run(store, keys, options, console)
    cells = store.read(keys)
    if not cells:
        raise ConfigError(f"{options.cells} has no cell of this tournament to report on")
    write_report(cells, html=options.html, markdown=options.markdown, circumstances=circumstances())
    console.print(f"{len(cells):,} of {len(keys):,} cells: {options.html}, {options.markdown}")
    return int(any(cell.num_failed and not cell.key.faults for cell in cells))


def _run(
    store: CellStore, keys: Sequence[CellKey], options: TournamentOptions, console: Console
) -> None:
    missing = store.missing(keys)
    console.print(f"{len(keys):,} cells, {len(missing):,} of them to simulate")
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    num_done = 0
    with progress:
        task = progress.add_task("cells", total=len(missing))

        def count(cell: CellFigures) -> None:
            nonlocal num_done
            num_done += 1
            progress.update(task, advance=1, description=f"{cell.key.workload} {cell.key.policy}")
            if not console.is_terminal and num_done % PLAIN_EVERY == 0:
                console.print(f"{num_done:,} of {len(missing):,} cells")

        run_missing(store, missing, traces=options.traces, jobs=options.jobs, on_done=count)


def _tell_left_out(scope: Scope, console: Console) -> None:
    out = [name for name, contest in CONTESTS.items() if not scope.has(contest)]
    if out:
        console.print(f"left out for want of their traces (--traces): {', '.join(out)}")


def _check_writable(options: TournamentOptions) -> None:
    """Before hours of work, not after them."""
    for path in (options.html, options.markdown):
        if not path.parent.is_dir():
            raise ConfigError(f"cannot write {path}: {path.parent} is no folder")
