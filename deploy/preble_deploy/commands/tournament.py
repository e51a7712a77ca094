"""Hold all routing policies against each other in simulation, and write a report.

Policies x workloads and traces x rates x seeds, on 2 to 512 simulated workers. Every cell is
simulated with the router's and the workers' own schedulers and kept as one JSON file, so that a run
broken off goes on where it stopped; only what is missing is simulated. The report is one HTML file
that needs no network, and tables in Markdown.

The whole takes hours on two cores. [bold]--quick[/] looks at one load and one seed of each contest;
[bold]--part[/] picks parts: peers, scenarios, reproduction, ablation, robustness, local, sizes.
Two more run only where they are named: scheduling (local policies and cache tiers on one worker)
and scheduling-behind (local policies on eight workers behind preble).

[bold]Examples[/]

  preble tournament --traces ../traces --jobs 2
  preble tournament --part scenarios --part ablation
  preble tournament --report-only --html report.html
"""

from collections.abc import Callable

from preble_deploy import options
from preble_deploy.tournament_settings import TournamentSettings


def run(settings: TournamentSettings) -> int:
    """Simulates what is missing, writes the report, and returns the exit status."""
    from preble_loadgen.tournament.command import TournamentOptions, run_tournament

    return run_tournament(
        TournamentOptions(
            cells=settings.cells,
            traces=settings.traces,
            parts=settings.part,
            quick=settings.quick,
            jobs=settings.jobs,
            report_only=settings.report_only,
            html=settings.html,
            markdown=settings.markdown,
        )
    )


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(TournamentSettings, run)
