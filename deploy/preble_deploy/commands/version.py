"""Print the versions of Preble and of what it runs on."""

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import typer

LIBRARIES = ("grpcio", "fastapi", "tokenizers", "torch", "transformers", "ray")


def installed(library: str) -> str:
    """The version of a library, without importing it."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def command() -> Callable[..., None]:
    """The typer command."""

    def call() -> None:
        from preble import __version__

        typer.echo(f"preble {__version__}")
        typer.echo(f"python {platform.python_version()}")
        for library in LIBRARIES:
            typer.echo(f"{library} {installed(library)}")

    return call
