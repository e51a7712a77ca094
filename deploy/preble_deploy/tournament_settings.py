"""Options of `preble tournament`."""

import os
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from preble_deploy.client_settings import RESULTS
from preble_deploy.settings import Words
from preble_deploy.sources import Flag, Settings

CELLS = "Cells"


class TournamentSettings(Settings):
    """`preble tournament`."""

    section: ClassVar[str] = "tournament"

    part: Annotated[Words, Flag(metavar="NAME", panel=CELLS, default="all")] = Field(
        (), description="Only these parts of the tournament."
    )
    quick: Annotated[bool, Flag(names=("--quick",), panel=CELLS)] = Field(
        False, description="One load and one seed of each contest."
    )
    traces: Annotated[Path | None, Flag(metavar="FOLDER", panel=CELLS)] = Field(
        None,
        description="Folder with the recorded traces; without it, only the generated workloads.",
    )
    jobs: Annotated[int, Field(ge=1), Flag(metavar="N", panel=CELLS, default="cores")] = Field(
        os.cpu_count() or 1, description="Cells at the same time, each in a process of its own."
    )
    cells: Annotated[Path, Flag(metavar="FOLDER", panel=RESULTS)] = Field(
        Path("tournament"), description="Where the cells are kept, one JSON file each."
    )
    report_only: Annotated[bool, Flag(names=("--report-only",), panel=RESULTS)] = Field(
        False, description="Simulate nothing; report on the cells that are there."
    )
    html: Annotated[Path, Flag(metavar="FILE", panel=RESULTS)] = Field(
        Path("tournament.html"), description="The report, with plots."
    )
    markdown: Annotated[Path, Flag(metavar="FILE", panel=RESULTS)] = Field(
        Path("tournament.md"), description="Its tables."
    )

    @field_validator("part")
    @classmethod
    def _known_parts(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        from preble_loadgen.tournament.plan import PARTS, STUDIES

        allowed = (*PARTS, *STUDIES)
        if any(part not in allowed for part in parts):
            raise ValueError(f"allowed: {', '.join(allowed)}")
        return parts
