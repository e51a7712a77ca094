"""Settings as a command line: typer options made from a class, and flags made from an object."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo

from preble_deploy import client_settings as _  # noqa: F401  (YAML keys of all commands are known)
from preble_deploy import profile_settings as _profile  # noqa: F401
from preble_deploy import simulate_settings as _simulate  # noqa: F401
from preble_deploy import trace_settings as _trace  # noqa: F401
from preble_deploy import validate_settings as _validate  # noqa: F401
from preble_deploy.sources import (
    AnySettings,
    Settings,
    allowed,
    flag_names,
    flag_of,
    load,
    variable,
)


def command(model: type[AnySettings], run: Callable[[AnySettings], int]) -> Callable[..., None]:
    """A function for `typer.Typer.command` that loads `model` and gives it to `run`.

    Flags arrive as text, or None when not given: the model is what validates them, in the same
    words as variables and files. What `run` returns is the exit status.
    """

    def call(**flags: Any) -> None:
        raise typer.Exit(run(load(model, flags)))

    parameters = [_parameter(name, field) for name, field in model.model_fields.items()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = flag_of(field)
    kind: Any = str | None
    if _is_list(field):
        kind = list[str] | None
    elif _is_switch(field):
        kind = bool | None
    appearance: dict[str, Any] = {
        "help": _help(name, field),
        "show_default": False,
        "rich_help_panel": flag.panel or None,
    }
    if flag.metavar and not _is_switch(field):
        appearance["metavar"] = flag.metavar
    shown = (
        typer.Argument(**appearance)
        if flag.argument
        else typer.Option(*flag_names(name, field), **appearance)
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, shown]
    )


def _is_switch(field: FieldInfo) -> bool:
    return field.annotation is bool


def _is_list(field: FieldInfo) -> bool:
    return bool(get_args(field.annotation)) and field.annotation == tuple[str, ...]


def _help(name: str, field: FieldInfo) -> str:
    """Meaning, what is allowed, default and variable of an option."""
    flag = flag_of(field)
    parts = [field.description or ""]
    if flag.choices:
        parts.append(f"One of {allowed(field)}.")
    default = flag.default or _printed(field.default)
    worth = "required" if field.is_required() else f"default: {default}"
    parts.append(f"[{worth}; env: {variable(name)}]")
    # Brackets would be taken for markup.
    return " ".join(parts).replace("[", "\\[")


def _printed(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value in ("", ()):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def command_line(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """Arguments and variables that give a child process exactly `settings`.

    Secrets go into the variables, since everybody on the machine can read arguments. The rest goes
    into arguments, so that a process list tells what runs.
    """
    arguments: list[str] = []
    variables: dict[str, str] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value == field.default or name == "config":
            continue
        flag = flag_of(field)
        if flag.secret:
            variables[variable(name)] = ",".join(value) if _is_list(field) else str(value)
        elif flag.argument:
            arguments.insert(0, str(value))
        elif _is_switch(field):
            on, _, off = flag_names(name, field)[0].partition("/")
            arguments.append(on if value else off)
        else:
            text = ",".join(value) if _is_list(field) else str(value)
            arguments += [flag_names(name, field)[0], text]
    return arguments, variables


def without_settings(environment: dict[str, str]) -> dict[str, str]:
    """`environment` without the variables of any option: they were read once, by the parent."""
    pending, names = [Settings], set[str]()
    while pending:
        pending += (model := pending.pop()).__subclasses__()
        names |= {variable(name) for name in model.model_fields}
    return {name: value for name, value in environment.items() if name.upper() not in names}
