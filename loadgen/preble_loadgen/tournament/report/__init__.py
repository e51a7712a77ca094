"""The tournament's report: one HTML page with plots, and tables in Markdown.

statistics.py (intervals over seeds), groups.py (cells put side by side), duels.py and capacity.py
find the figures; comparison.py, studies.py, resilience.py and chapters.py put them into the tables
of document.py; palette.py, plots.py and figures.py draw; html.py, page.py and markdown.py write
down. Only plots.py, and figures.py above it, need matplotlib.
"""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preble.errors import ConfigError
from preble_loadgen.tournament.cell import CellFigures
from preble_loadgen.tournament.report.chapters import chapters
from preble_loadgen.tournament.report.document import Figure
from preble_loadgen.tournament.report.groups import is_own, rank
from preble_loadgen.tournament.report.html import to_html
from preble_loadgen.tournament.report.markdown import to_markdown
from preble_loadgen.tournament.report.palette import LOOKS, look
from preble_loadgen.tournament.scheduling.plan import BEHIND, SECTION

TITLE = "Tournament of routing policies"
STUDY_TITLE = "Scheduling within workers"


def write_report(
    cells: Sequence[CellFigures], *, html: Path, markdown: Path, circumstances: Mapping[str, Any]
) -> None:
    """Both forms of the report over `cells`, in any order.

    Args:
        circumstances: what a reader of figures asks: command, date, machine; stands on top.

    Raises:
        ConfigError: there are no cells, matplotlib is missing, or a file cannot be written.
    """
    if not cells:
        raise ConfigError("there are no cells to report on; run the tournament first")
    facts = _facts(circumstances)
    parts = chapters(cells)
    title = STUDY_TITLE if {cell.key.section for cell in cells} <= {SECTION, BEHIND} else TITLE
    page = to_html(parts, _drawn(cells), title=title, circumstances=facts, policies=_legend(cells))
    _write(html, page)
    _write(markdown, to_markdown(parts, title=title, circumstances=facts))


def _drawn(cells: Sequence[CellFigures]) -> dict[str, list[Figure]]:
    try:
        from preble_loadgen.tournament.report.figures import figures
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the report needs {error.name}, which is not installed: pip install 'preble[loadgen]'"
        ) from error
    return figures(cells)


def _facts(circumstances: Mapping[str, Any]) -> dict[str, str]:
    """Flat, as text; the machine is added unless it is told."""
    facts: dict[str, str] = {}
    for name, value in circumstances.items():
        if isinstance(value, Mapping):
            facts |= {str(inner): str(text) for inner, text in value.items()}
        else:
            facts[name] = str(value)
    return {"machine": f"{platform.machine()}, {platform.system()}"} | facts


def _legend(cells: Sequence[CellFigures]) -> dict[str, str]:
    """The policies to pick from, ours first; ablations are not drawn as lines of their own."""
    names = {cell.key.policy for cell in cells}
    return {
        name: look(name).colour
        for name in sorted(names, key=rank)
        if name in LOOKS or not is_own(name)
    }


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
