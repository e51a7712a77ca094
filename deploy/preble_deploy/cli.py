"""The command line. Each command is a module in `commands/`, imported when it is the one called.

Only typer is imported here: `preble --help` must answer at once, on a machine without torch, ray
or a network.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from preble.errors import ConfigError, PrebleError

COMMANDS = {
    "serve": "Bring up a router and its workers, here or on Ray.",
    "demo": "Compare policies on simulated workers, live, in two minutes.",
    "router": "Run a router in the foreground.",
    "worker": "Run a worker in the foreground.",
    "status": "Show the workers of a running cluster.",
    "route": "Show where a prompt would go, and why.",
    "drain": "Empty a worker and end it; no request fails.",
    "replay": "Send a trace to a running cluster and measure.",
    "workload": "Write a synthetic workload as a trace.",
    "analyze": "Show what a trace asks of a cluster.",
    "simulate": "Simulate a cluster on a trace and compare policies.",
    "tournament": "Hold all routing policies against each other and report.",
    "profile": "Measure an engine and fit its cost model.",
    "validate": "Hold the simulator against real workers.",
    "down": "Remove a cluster left running on Ray.",
    "doctor": "Check whether this machine can serve.",
    "version": "Print versions.",
}

# What typer raises for a wrong command line; where it lives depends on typer's version.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def make_app(chosen: str | None = None) -> typer.Typer:
    """The application; of its commands only `chosen` is loaded, the others have a name only."""
    app = typer.Typer(
        name="preble",
        add_completion=False,
        # Importing rich takes longer than all the rest; the list of commands needs none of it.
        rich_markup_mode="rich" if chosen in COMMANDS else None,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        help="Serve large language models on many GPUs, each request where its prefix is cached.",
        epilog="Start with `preble serve`, or `preble doctor` where something is missing. "
        "`preble COMMAND --help` explains the options; each can also be set by a PREBLE_* "
        "variable or in a YAML file given by --config.",
    )
    app.callback(invoke_without_command=True)(_without_command)
    for name, summary in COMMANDS.items():
        if name == chosen:
            module = import_module(f"preble_deploy.commands.{name}")
            app.command(name, help=_unwrapped(module.__doc__ or summary))(module.command())
        else:
            app.command(name, help=summary)(_not_loaded)
    return app


def _unwrapped(text: str) -> str:
    """Paragraphs as single lines, for the terminal to wrap; indented lines stay as they are."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else p.replace("\n", " ") for p in paragraphs)


def _without_command(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from preble import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _not_loaded() -> None:
    raise AssertionError("main() loads the command it calls")


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status: 0 done, 1 failed, 2 wrong usage."""
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    try:
        status = make_app(chosen)(
            _with_ray_address(arguments), prog_name="preble", standalone_mode=False
        )
    except ConfigError as error:
        return _fail(str(error), 2)
    except PrebleError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        return 141
    except _UsageError as error:
        return _fail(str(getattr(error, "message", error)), 2)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    print(f"preble: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return status


def _with_ray_address(arguments: Sequence[str]) -> list[str]:
    """`--ray` may stand without its address: the next word is one only if it looks like one."""
    words = list(arguments)
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if word == "--ray" and not (following in ("auto", "local") or ":" in following):
            words[index] = "--ray=auto"
    return words


def main() -> None:
    """Entry point of the `preble` program."""
    # gRPC's core would log every connection that ends; our own lines tell what matters.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.exit(run(sys.argv[1:]))
