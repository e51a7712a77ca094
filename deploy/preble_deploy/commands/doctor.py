"""Check whether this machine can serve MODEL: libraries, devices, ports, model, memory.

Ends with a self-test: a router and a simulated worker in this process answer one request. Each
line is ok, warn or fail, with what to do. Exit status: 1 if anything failed.

[bold]Examples[/]

  preble doctor
  preble doctor Qwen/Qwen3-8B --port 9000
"""

import logging
from collections.abc import Callable

from rich.text import Text

from preble_deploy import options
from preble_deploy.client_settings import DoctorSettings

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def run(settings: DoctorSettings) -> int:
    """Prints the findings as they come."""
    from preble_deploy.doctor import Level, examine
    from preble_loadgen.wide_console import wide_console

    logging.basicConfig(level=logging.CRITICAL)
    console = wide_console()
    failed = False
    for finding in examine(settings):
        failed |= finding.level is Level.FAIL
        line = Text(f"{finding.level:<4} ", style=STYLES[finding.level])
        line.append(f"{finding.subject:<10} {finding.words}", style="default")
        console.print(line, soft_wrap=True)
        if finding.advice:
            console.print(Text(f"     → {finding.advice}"), soft_wrap=True)
    return 1 if failed else 0


def command() -> Callable[..., None]:
    """The typer command."""
    return options.command(DoctorSettings, run)
