"""`make vopr`: simulated lives of a cluster, one per seed; `make vopr-mutants`: of broken ones.

python -m vopr --seeds 10000 --jobs 2       every seed from 0 on, or from --first
python -m vopr --seed 17                    one again, with all that happens in it
python -m vopr --mutants                    planted bugs, each of which must be found
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from multiprocessing import get_context

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from vopr.mutants import MUTANTS, Hunt, hunt
from vopr.world import Verdict, run_seed

console = Console()
MOST_SHOWN = 20


def replay_line(seed: int, mutant: str = "") -> str:
    """What to type to see it again."""
    return f"make vopr SEED={seed}" + (f" MUTANT={mutant}" if mutant else "")


def show_failure(verdict: Verdict) -> None:
    console.print(f"[red]seed {verdict.seed}[/]: {verdict.violation}", highlight=False)
    console.print(f"    {replay_line(verdict.seed)}", highlight=False)


def show_summary(verdicts: Iterable[Verdict]) -> None:
    """What struck, and how requests ended."""
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    virtual = cpu = 0.0
    for verdict in verdicts:
        faults += verdict.struck
        outcomes += verdict.outcomes
        virtual += verdict.virtual_seconds
        cpu += verdict.cpu_seconds
    table = Table("fault", "times", "end of a request", "times", box=None)
    for i in range(max(len(faults), len(outcomes))):
        left = faults.most_common()[i] if i < len(faults) else ("", "")
        right = outcomes.most_common()[i] if i < len(outcomes) else ("", "")
        table.add_row(left[0], str(left[1]), right[0], str(right[1]))
    console.print(table)
    console.print(f"{virtual / 3600:.1f} simulated hours in {cpu:.0f} s of CPU", highlight=False)


def run_many(seeds: range, jobs: int) -> int:
    """Every seed, on `jobs` processes; the number that failed."""
    verdicts: list[Verdict] = []
    num_failed = 0
    with (
        get_context("spawn").Pool(jobs) as pool,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar,
    ):
        task = bar.add_task("seeds", total=len(seeds))
        for verdict in pool.imap_unordered(run_seed, seeds, chunksize=4):
            verdicts.append(verdict)
            if verdict.violation:
                num_failed += 1
                if num_failed <= MOST_SHOWN:
                    show_failure(verdict)
            bar.advance(task)
    show_summary(verdicts)
    console.print(f"{num_failed} of {len(seeds)} seeds violate an invariant", highlight=False)
    return num_failed


def run_one(seed: int) -> int:
    """With all that happens."""
    verdict = run_seed(seed, echo=lambda line: console.print(line, highlight=False, markup=False))
    show_summary([verdict])
    console.print(f"trace {verdict.digest}, {verdict.num_steps} messages", highlight=False)
    console.print(f"[red]{verdict.violation}[/]" if verdict.violation else "no violation")
    return int(bool(verdict.violation))


def run_mutants(names: list[str], num_seeds: int, jobs: int) -> int:
    """Each planted bug, until some seed finds it; the number that were not found."""
    found: list[Hunt] = []
    with (
        get_context("spawn").Pool(jobs) as pool,
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
    console.print(f"{len(found) - missed} of {len(found)} mutants found", highlight=False)
    return missed


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vopr", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--mutants", action="store_true", help="plant bugs instead")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="plant this one")
    options = parser.parse_args()
    if options.seed is not None:
        if options.mutant:
            MUTANTS[options.mutant]()
        sys.exit(run_one(options.seed))
    if options.mutants or options.mutant:
        names = [options.mutant] if options.mutant else list(MUTANTS)
        sys.exit(min(run_mutants(names, options.seeds, options.jobs), 1))
    seeds = range(options.first, options.first + options.seeds)
    sys.exit(min(run_many(seeds, options.jobs), 1))


if __name__ == "__main__":
    main()
