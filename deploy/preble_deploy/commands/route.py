"""Show where a prompt would go, and why. Nothing is generated and nothing is booked.

One row per worker that could take it: prompt tokens it holds in its cache, then the terms the
router's policy weighs. The chosen worker is marked.

[bold]Examples[/]

  preble route "You are a helpful assistant."
  preble route - --max-tokens 512 < prompt.txt
"""

import dataclasses
import json
import sys
from collections.abc import Callable

from rich.table import Table

from preble.errors import ConfigError
from preble.results import RouteExplanation
from preble_deploy import options
from preble_deploy.client_settings import RouteSettings
from preble_deploy.connect import connected, plain
from preble_loadgen.wide_console import wide_console


def run(settings: RouteSettings) -> int:
    """Prints the table of candidates."""
    text = sys.stdin.read() if settings.text == "-" else settings.text
    if not text:
        raise ConfigError("TEXT is ''; allowed: a prompt, or - to read it from standard input")
    with connected(settings) as client:
        explanation = client.explain(
            text, namespace=settings.namespace, max_tokens=settings.max_tokens or None
        )
    if settings.json_output:
        print(json.dumps(plain(dataclasses.asdict(explanation))))  # noqa: T201
    else:
        _print_table(explanation)
    return 0


def _print_table(explanation: RouteExplanation) -> None:
    names = list(dict.fromkeys(name for each in explanation.candidates for name in each.terms))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("worker", overflow="fold")
    table.add_column("cached tokens", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for candidate in explanation.candidates:
        terms = [_number(candidate.terms.get(name)) for name in names]
        chosen = candidate.worker_id == explanation.worker_id
        table.add_row(
            "→" if chosen else "",
            candidate.worker_id,
            str(candidate.cached_tokens),
            *terms,
            style="bold" if chosen else "",
        )
    console = wide_console()
    console.print(table, soft_wrap=True)
    console.print(
        f"\n{explanation.prompt_tokens} prompt tokens → {explanation.worker_id}: "
        f"{explanation.reason}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(RouteSettings, run)
