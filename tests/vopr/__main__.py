"""Simulated lives of a cluster: production's routers and workers in virtual time, one per seed.

Each seed draws routers, workers, requests and faults. After every instant all invariants must hold,
and 30 simulated seconds after the last fault all must be healthy. A seed runs the same way each
time, so one that fails is replayed with all that happens in it.
"""

import argparse
import sys
import time
from collections import Counter
from multiprocessing import get_context

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from vopr.faults import KINDS
from vopr.mutants import MUTANTS, Hunt, hunt
from vopr.regressions import REGRESSIONS
from vopr.world import Verdict, collect_rarely, run_life, run_seed

EXAMPLES = """
examples:
  make vopr                           10,000 seeds on two processes, after the bugs of the past
  make vopr SEEDS=500 FIRST=1000 JOBS=4               fewer, from another one on, on more
  make vopr SEED=17                   one again, with all that happens in it
  make vopr REGRESSION=3              a bug of the past, in the same way
  make vopr SEED=17 MUTANT=silence_is_not_noticed     with a bug planted
  make vopr-mutants                   every planted bug, until some seed finds it

exit status: 0 if nothing was violated and all planted bugs were found, else 1; 130 if interrupted
"""
MOST_SHOWN = 20

console = Console(highlight=False, width=max(Console().width, 120))


class Summary:
    """What the lives so far have shown."""

    def __init__(self) -> None:
        self.num_lives = self.num_failed = 0
        self._columns: dict[str, Counter[str]] = {
            "what happened": Counter(dict.fromkeys(KINDS, 0)),
            "lived with": Counter(),
            "asked for": Counter(),
            "end of a request": Counter(),
        }
        self._virtual = self._cpu = 0.0

    def add(self, verdict: Verdict, replay: str) -> None:
        """One more; a violation is shown at once, with how to see it again."""
        self.num_lives += 1
        for counts, more in zip(
            self._columns.values(),
            (verdict.struck, verdict.traits, verdict.features, verdict.outcomes),
            strict=True,
        ):
            counts.update(more)
        self._virtual += verdict.virtual_seconds
        self._cpu += verdict.cpu_seconds
        if verdict.violation:
            self.num_failed += 1
            if self.num_failed <= MOST_SHOWN:
                console.print(f"[red]{verdict.violation}[/]\n    {replay}", soft_wrap=True)

    def show(self) -> None:
        """A table, in which what never happened in many lives stands as 0."""
        columns = [counts.most_common() for counts in self._columns.values()]
        if self.num_lives == 1:
            columns = [[pair for pair in column if pair[1]] for column in columns]
        table = Table(*(part for name in self._columns for part in (name, "times")), box=None)
        for i in range(max(map(len, columns))):
            pairs = [column[i] if i < len(column) else ("", "") for column in columns]
            table.add_row(*(str(part) for pair in pairs for part in pair))
        console.print(table)
        console.print(f"{self._virtual / 3600:.2f} simulated hours in {self._cpu:.0f} s of CPU")


def run_many(seeds: range, jobs: int) -> int:
    """The bugs of the past, then every seed, on `jobs` processes; the exit status."""
    summary = Summary()
    began_at = time.monotonic()
    for regression in REGRESSIONS:
        summary.add(regression.live(), f"make vopr REGRESSION={regression.life.seed}")
    status = 0
    try:
        _live(seeds, jobs, summary)
    except KeyboardInterrupt:
        status = 130
    summary.show()
    console.print(
        f"{summary.num_failed} of {summary.num_lives} lives violate an invariant: "
        f"{len(REGRESSIONS)} with bugs of the past, {summary.num_lives - len(REGRESSIONS)} of "
        f"{len(seeds)} seeds from {seeds.start} on, in {time.monotonic() - began_at:.0f} s"
    )
    return status or int(summary.num_failed > 0)


def _live(seeds: range, jobs: int, summary: Summary) -> None:
    with (
        get_context("spawn").Pool(jobs, initializer=collect_rarely) as pool,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar,
    ):
        task = bar.add_task("seeds", total=len(seeds))
        for verdict in pool.imap_unordered(run_seed, seeds, chunksize=4):
            summary.add(verdict, f"make vopr SEED={verdict.seed}")
            bar.advance(task)


def run_one(options: argparse.Namespace) -> int:
    """With all that happens; the exit status."""

    def echo(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if options.mutant:
        MUTANTS[options.mutant]()
    if options.regression is not None:
        regression = next(each for each in REGRESSIONS if each.life.seed == options.regression)
        console.print(f"it was wrong that {regression.was_wrong}; ends must be {regression.ends}")
        verdict = run_life(regression.life, echo=echo)
    else:
        verdict = run_seed(options.seed, echo=echo)
    summary = Summary()
    summary.add(verdict, "")
    summary.show()
    console.print(f"trace {verdict.digest}, {verdict.num_steps} messages")
    console.print("" if verdict.violation else "no violation")
    return int(bool(verdict.violation))


def run_mutants(names: list[str], num_seeds: int, jobs: int) -> int:
    """Each planted bug, until some life finds it; the exit status."""
    found: list[Hunt] = []
    with (
        get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool,
        Progress(*Progress.get_default_columns(), TimeRemainingColumn(), console=console) as bar,
    ):
        task = bar.add_task("mutants", total=len(names))
        for result in pool.imap_unordered(hunt, [(name, num_seeds) for name in names]):
            found.append(result)
            bar.advance(task)
    table = Table("mutant", "found by", "violation", box=None)
    for result in sorted(found, key=lambda each: names.index(each.mutant)):
        found_by = result.found_by or "[red]not found[/]"
        table.add_row(result.mutant, found_by, result.violation[:90])
    console.print(table)
    missed = sum(not result.found_by for result in found)
    console.print(f"{len(found) - missed} of {len(found)} mutants found")
    return int(missed > 0)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vopr",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many to live through (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument(
        "--regression",
        type=int,
        choices=[each.life.seed for each in REGRESSIONS],
        help="replay the life of a past bug",
    )
    parser.add_argument("--mutants", action="store_true", help="plant each bug in turn instead")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), metavar="NAME", help="plant this one")
    options = parser.parse_args()
    if options.seed is not None or options.regression is not None:
        sys.exit(run_one(options))
    if options.mutants or options.mutant:
        names = [options.mutant] if options.mutant else list(MUTANTS)
        sys.exit(run_mutants(names, options.seeds, options.jobs))
    sys.exit(run_many(range(options.first, options.first + options.seeds), options.jobs))


if __name__ == "__main__":
    main()
