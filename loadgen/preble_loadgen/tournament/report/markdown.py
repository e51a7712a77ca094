"""The report for the repository: what HTML shows, without figures and without the long tables."""

from collections.abc import Mapping, Sequence

from preble_loadgen.tournament.report.document import Chapter, Table


def to_markdown(
    chapters: Sequence[Chapter], *, title: str, circumstances: Mapping[str, str]
) -> str:
    """The whole document. Pure."""
    parts = [f"# {title}"]
    parts.append("\n".join(f"- {name}: `{value}`" for name, value in circumstances.items()))
    for chapter in chapters:
        parts += [f"## {chapter.title}", chapter.text]
        for table in chapter.tables:
            if not table.is_detail:
                parts += _table(table)
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> list[str]:
    parts = [f"### {table.title}", table.text]
    if table.rows:
        marks = ["---"] * table.num_names
        marks += ["---:"] * (len(table.columns) - table.num_names)
        lines = [_line(table.columns), "|" + "|".join(marks) + "|"]
        lines += [
            _line([f"**{cell}**" for cell in row.cells] if row.strong else row.cells)
            for row in table.rows
        ]
        parts.append("\n".join(lines))
    return parts


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
