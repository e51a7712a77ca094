"""All chapters of the report in their order, the one that sums them up first. Pure."""

from collections.abc import Sequence

from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report.behind import behind_chapter
from preble_loadgen.tournament.report.comparison import (
    capacity_chapter,
    contested,
    duels_chapter,
)
from preble_loadgen.tournament.report.document import Chapter, Row, Table
from preble_loadgen.tournament.report.groups import Setting
from preble_loadgen.tournament.report.resilience import robustness_chapter, scaling_chapter
from preble_loadgen.tournament.report.scheduling import scheduling_chapter
from preble_loadgen.tournament.report.studies import (
    ablation_chapter,
    failures_chapter,
    local_chapter,
    reproduction_chapter,
)

BUILDERS = (
    duels_chapter,
    capacity_chapter,
    reproduction_chapter,
    failures_chapter,
    scaling_chapter,
    robustness_chapter,
    ablation_chapter,
    local_chapter,
    scheduling_chapter,
    behind_chapter,
    scheduling_chapter,
    behind_chapter,
)


def chapters(cells: Sequence[CellFigures]) -> list[Chapter]:
    """Those for which there are cells."""
    built = [chapter for build in BUILDERS if (chapter := build(cells)) is not None]
    return [_inventory(cells), *built]


def _inventory(cells: Sequence[CellFigures]) -> Chapter:
    """What was simulated."""
    seeds = sorted({cell.key.seed for cell in cells})
    requests = sum(cell.num_requests for cell in cells)
    text = (
        f"{len(cells)} simulations of {requests:,} requests together, with the routing and the"
        f" local policies of production in virtual time. Seeds: {_listed(seeds)}."
        f" {len(contested(cells))} simulations count as duels between policies."
    )
    sections = sorted({cell.key.section for cell in cells})
    return Chapter(
        anchor="cells",
        title="What was simulated",
        text=text,
        tables=[
            Table(
                title="By section",
                text="",
                columns=(
                    "Section",
                    "Workloads",
                    "Workers",
                    "Loads",
                    "Policies",
                    "Seeds",
                    "Simulations",
                    "Failed requests",
                ),
                rows=[_section(name, cells) for name in sections],
                num_names=4,
            )
        ],
    )


def _section(name: str, cells: Sequence[CellFigures]) -> Row:
    own = [cell for cell in cells if cell.key.section == name]
    settings = [Setting.of(cell.key) for cell in own]
    return Row(
        (
            name,
            ", ".join(sorted({setting.name for setting in settings})),
            _listed(sorted({setting.num_workers for setting in settings})),
            ", ".join(
                sorted(
                    {setting.at_load for setting in settings},
                    key=lambda load: (len(load) > 9, load),
                )
            ),
            str(len({cell.key.policy for cell in own})),
            str(len({cell.key.seed for cell in own})),
            str(len(own)),
            str(sum(cell.num_failed for cell in own)),
        )
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
