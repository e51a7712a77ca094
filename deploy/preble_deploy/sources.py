"""Where settings come from: flags, then PREBLE_* variables, then a YAML file, then defaults.

`load` is the one door. Whatever is wrong is told in one sentence that names the option as the
operator wrote it (flag, variable, or file and line), its value and what is allowed.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from preble.errors import ConfigError

ENV_PREFIX = "PREBLE_"


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field shows on the command line, beyond what its type and default say.

    Attributes:
        names: flags in place of the one made from the field's name.
        metavar: what stands for the value in help, e.g. its unit.
        panel: heading under which help lists it.
        choices: the values allowed, looked up when needed because looking costs an import.
        argument: a positional argument instead of an option.
        default: what help prints as the default, where the value itself would not tell.
        secret: never printed, and handed to child processes by environment only.
    """

    names: tuple[str, ...] = ()
    metavar: str = ""
    panel: str = ""
    choices: Callable[[], tuple[str, ...]] | None = None
    argument: bool = False
    default: str = ""
    secret: bool = False


class Settings(BaseSettings):
    """Root of the settings of all commands. One subclass per command."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        enable_decoding=False,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )

    section: ClassVar[str] = ""
    """The command's name, and the section of a YAML file that is for this command only."""

    config: Annotated[Path | None, Flag(metavar="FILE")] = Field(
        None,
        description="YAML file with options by name, e.g. `max-num-seqs: 128`. A section named "
        "after a command holds for that command only. Flags and variables win over it.",
    )

    @field_validator("*")
    @classmethod
    def _one_of_the_choices(cls, value: Any, context: ValidationInfo) -> Any:
        assert context.field_name is not None
        flag = flag_of(cls.model_fields[context.field_name])
        if flag.choices and value not in flag.choices():
            raise ValueError(allowed(cls.model_fields[context.field_name]))
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Puts the YAML file between the environment and the defaults."""
        path = init_settings().get("config") or env_settings().get("config")
        return init_settings, env_settings, _YamlSource(cls, Path(path) if path else None)


AnySettings = TypeVar("AnySettings", bound=Settings)


def load(model: type[AnySettings], flags: Mapping[str, object]) -> AnySettings:
    """Settings of one command. `flags` holds what was given on the command line, None for the rest.

    Raises:
        ConfigError: a value is not allowed, or the file cannot be used.
    """
    given: dict[str, Any] = {
        name: value for name, value in flags.items() if value is not None and value != []
    }
    try:
        return model(**given)
    except ValidationError as error:
        raise ConfigError("; ".join(_complaints(model, error, given))) from None


def flag_of(field: FieldInfo) -> Flag:
    """How `field` shows on the command line."""
    return next((entry for entry in field.metadata if isinstance(entry, Flag)), Flag())


def flag_names(name: str, field: FieldInfo) -> tuple[str, ...]:
    """All flags of `field`, the preferred one first."""
    flag = flag_of(field)
    return flag.names or (name.upper() if flag.argument else "--" + name.replace("_", "-"),)


def variable(name: str) -> str:
    """The environment variable of the field `name`."""
    return ENV_PREFIX + name.upper()


def allowed(field: FieldInfo) -> str:
    """What a field accepts, in words, e.g. "a whole number from 0 to 65535"; "" for free text."""
    flag = flag_of(field)
    if flag.choices:
        return ", ".join(flag.choices())
    kinds = [field.annotation, *get_args(field.annotation)]
    literal = next((kind for kind in kinds if get_origin(kind) is Literal), None)
    if literal is not None:
        return ", ".join(get_args(literal))
    if bool in kinds:
        return "true or false"
    if int in kinds or float in kinds:
        return ("a whole number" if int in kinds else "a number") + _bounds(field)
    return ""


def _bounds(field: FieldInfo) -> str:
    low = next((f" from {m.ge}" for m in field.metadata if isinstance(m, Ge)), "")
    low = low or next((f" above {m.gt}" for m in field.metadata if isinstance(m, Gt)), "")
    high = next((f" to {m.le}" for m in field.metadata if isinstance(m, Le)), "")
    high = high or next((f" below {m.lt}" for m in field.metadata if isinstance(m, Lt)), "")
    return low + high if low or not high else f" up{high}"


def _complaints(
    model: type[Settings], error: ValidationError, given: Mapping[str, object]
) -> list[str]:
    """One phrase per problem: where the value came from, the value, what is allowed."""
    complaints = []
    for problem in error.errors():
        reason = str(problem.get("ctx", {}).get("error", "")) or problem["msg"]
        if not problem["loc"]:
            complaints.append(reason)
            continue
        name = str(problem["loc"][0])
        field = model.model_fields[name]
        if problem["type"] == "missing":
            complaints.append(f"{flag_names(name, field)[0]} is missing")
            continue
        value = "given" if flag_of(field).secret else _quoted(problem["input"])
        words = f"allowed: {allowed(field)}" if allowed(field) else reason
        complaints.append(f"{_origin(model, name, given)} is {value}; {words}")
    return complaints


def _quoted(value: object) -> str:
    """A value as the operator wrote it; flags that may be repeated arrive as a list."""
    return repr(",".join(map(str, value)) if isinstance(value, list) else value)


def _origin(model: type[Settings], name: str, given: Mapping[str, object]) -> str:
    """How the operator named the field: the flag, the variable, or file, line and key."""
    if name in given:
        return flag_names(name, model.model_fields[name])[0]
    present = {key.upper() for key, value in os.environ.items() if value}
    if variable(name) in present:
        return variable(name)
    path = given.get("config") or os.environ.get(variable("config"))
    entry = read_yaml(Path(str(path)), model).get(name) if path else None
    return f"{path}:{entry.line}: {entry.key}" if entry else name


@dataclass(frozen=True, slots=True)
class YamlEntry:
    """A value of a YAML file and where it stands."""

    key: str
    value: object
    line: int


def read_yaml(path: Path, model: type[Settings]) -> dict[str, YamlEntry]:
    """The entries of the file at `path` that are for the command of `model`, by field name.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or has a key that no command knows.
    """
    known = _options_of_all_commands()
    merged: dict[str, YamlEntry] = {}
    sections: dict[str, YamlEntry] = {}
    for key, node, value in _pairs(path, _parse(path)):
        line = node.start_mark.line + 1
        if key in known and isinstance(node, yaml.MappingNode):
            for inner, inner_node, inner_value in _pairs(path, (node, value)):
                inner_line = inner_node.start_mark.line + 1
                _refuse_unknown(path, inner_line, inner, known[key], f" of `preble {key}`")
                if key == model.section:
                    sections[_field(inner)] = YamlEntry(inner, inner_value, inner_line)
            continue
        _refuse_unknown(path, line, key, set().union(*known.values()), "")
        if _field(key) in model.model_fields:
            merged[_field(key)] = YamlEntry(key, value, line)
    return merged | sections


def _options_of_all_commands() -> dict[str, set[str]]:
    """Field names by command, of every command that has settings."""
    pending, found = [Settings], {}
    while pending:
        pending += (model := pending.pop()).__subclasses__()
        if model.section:
            found[model.section] = set(model.model_fields)
    return found


def _field(key: str) -> str:
    return key.replace("-", "_")


def _refuse_unknown(path: Path, line: int, key: str, known: set[str], whose: str) -> None:
    if _field(key) in known:
        return
    near = difflib.get_close_matches(_field(key), sorted(known), n=1)
    hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
    raise ConfigError(f"{path}:{line}: {key} is no option{whose}{hint}")


def _parse(path: Path) -> tuple[yaml.Node | None, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"--config is {str(path)!r}; {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _pairs(path: Path, parsed: tuple[yaml.Node | None, Any]) -> list[tuple[str, yaml.Node, Any]]:
    """Key, value node and value of a mapping; a node knows its line, a value does not."""
    node, values = parsed
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected `option: value` lines")
    pairs: dict[str, tuple[str, yaml.Node, Any]] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in pairs:
            raise ConfigError(f"{path}:{line}: {key} stands twice")
        if key not in values:
            raise ConfigError(f"{path}:{line}: {key} is no option name")
        pairs[key] = (key, value_node, values[key])
    return list(pairs.values())


class _YamlSource(PydanticBaseSettingsSource):
    """The YAML file as a source of pydantic-settings."""

    def __init__(self, model: type[Settings], path: Path | None) -> None:
        super().__init__(model)
        self._model = model
        self._path = path

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: the file is read as a whole."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        entries = read_yaml(self._path, self._model)
        return {name: entry.value for name, entry in entries.items() if entry.value is not None}
