"""The report as one HTML file that needs nothing else: no network, no fonts, no script library."""

from collections.abc import Mapping, Sequence
from html import escape

from preble_loadgen.tournament.report.document import Chapter, Figure, Table
from preble_loadgen.tournament.report.page import SCRIPT, STYLE


def to_html(
    chapters: Sequence[Chapter],
    figures: Mapping[str, Sequence[Figure]],
    *,
    title: str,
    circumstances: Mapping[str, str],
    policies: Mapping[str, str],
) -> str:
    """The whole page. Pure.

    Args:
        figures: by the anchor of their chapter.
        policies: name → colour of those that are drawn, for the legend that picks one out.
    """
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in circumstances.items()
    )
    body = "".join(_chapter(chapter, figures.get(chapter.anchor, ())) for chapter in chapters)
    contents = "".join(_contents(chapter, figures.get(chapter.anchor, ())) for chapter in chapters)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><dl class="facts">{facts}</dl></header>'
        f"<nav><h2>Contents</h2><ol>{contents}</ol></nav>"
        f"{_legend(policies)}<main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _contents(chapter: Chapter, figures: Sequence[Figure]) -> str:
    inner = "".join(
        f'<li><a href="#{_anchor(chapter, number)}">{escape(figure.title)}</a></li>'
        for number, figure in enumerate(figures)
    )
    nested = f"<details><summary>{len(figures)} figures</summary><ul>{inner}</ul></details>"
    link = f'<a href="#{chapter.anchor}">{escape(chapter.title)}</a>'
    return f"<li>{link}{nested if figures else ''}</li>"


def _legend(policies: Mapping[str, str]) -> str:
    chips = "".join(
        f'<button type="button" data-policy="{escape(name)}">'
        f'<span style="background:{colour}"></span>{escape(name)}</button>'
        for name, colour in policies.items()
    )
    return f'<div class="legend" title="Pick out one policy in all plots">{chips}</div>'


def _anchor(chapter: Chapter, number: int) -> str:
    return f"{chapter.anchor}-{number}"


def _chapter(chapter: Chapter, figures: Sequence[Figure]) -> str:
    shown = "".join(_table(table) for table in chapter.tables if not table.is_detail)
    drawn = "".join(
        f'<figure id="{_anchor(chapter, number)}"><figcaption><b>{escape(figure.title)}.</b> '
        f"{escape(figure.text)}</figcaption>{figure.svg}</figure>"
        for number, figure in enumerate(figures)
    )
    folded = "".join(_table(table) for table in chapter.tables if table.is_detail)
    return (
        f'<section id="{chapter.anchor}"><h2>{escape(chapter.title)}</h2>'
        f"<p>{escape(chapter.text)}</p>{shown}{drawn}{folded}</section>"
    )


def _table(table: Table) -> str:
    text = f"<p>{escape(table.text)}</p>" if table.text else ""
    grid = _grid(table) if table.rows else ""
    if table.is_detail:
        summary = f"{escape(table.title)} ({len(table.rows)} rows)"
        return f"<details><summary>{summary}</summary>{text}{grid}</details>"
    return f"<h3>{escape(table.title)}</h3>{text}{grid}"


def _grid(table: Table) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}>{escape(cell)}</{tag}>"
            if index < table.num_names
            else f'<{tag} class="n">{escape(cell)}</{tag}>'
            for index, cell in enumerate(cells)
        )

    rows = "".join(
        f"<tr{' class=strong' if row.strong else ''}>{line('td', row.cells)}</tr>"
        for row in table.rows
    )
    head = line("th", table.columns)
    grid = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide"><table>{grid}</table></div>'
