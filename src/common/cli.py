"""Build command lines from dataclasses. Flags, `--help` and YAML settings come from the fields and their docstrings."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, get_args

import jsonargparse
import yaml

from src.common.errors import InputError, fail, nearest
from src.common.model_sizes import mode_settings, modes
from src.common.reading import check_brackets, read_yaml

# What does the work of flags that older systems have.
INSTEAD = {"hccl_connect_time": "set HCCL_CONNECT_TIMEOUT in the environment, in seconds (6000 if you don't)"}


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Arguments = TypeVar("Arguments", bound=Dataclass)


class _Parser(jsonargparse.ArgumentParser):
    """Parser that reports each error in one line, with the nearest known name for an unknown option."""

    known_keys: Mapping[str, object] = MappingProxyType({})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown_flag = re.match(r"unrecognized arguments: (--)?([^\s=]+)", message, re.IGNORECASE)
        unknown_key = re.search(
            r"(?:Group '([^']*)' does not accept (?:option|nested key) '([^']+)'"
            r"|Option '([^']+)' is not accepted)",
            message,
        )
        missing = re.fullmatch(r"the following arguments are required: ([\w.]+)(?:, .*)?", message)
        if missing:
            purpose = next(action.help or "" for action in self._actions if action.dest == missing[1])
            purpose = purpose.split(" (required")[0].rstrip(".")
            message = f"--{missing[1].removesuffix('_')} is not given: {purpose[:1].lower()}{purpose[1:]}"
        elif unknown_flag and unknown_flag[2] in INSTEAD:
            message = f"no option --{unknown_flag[2]}; {INSTEAD[unknown_flag[2]]}"
        elif unknown_flag and unknown_flag[1]:
            message = f"no option --{unknown_flag[2]}" + self._nearest_key(unknown_flag[2]).replace("'", "'--", 1)
        elif unknown_flag:
            message = f"unexpected argument '{unknown_flag[2]}'; every option has a name (--help), patterns need quotes"
        elif unknown_key:
            key = ".".join(part for part in unknown_key.groups() if part)
            message = f"no setting '{key}'" + self._nearest_key(key)
        else:
            message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "").replace("Parser key ", "")
        fail(message)

    def _nearest_key(self, key: str) -> str:
        """Suggest the nearest known key: by its whole name first, then by its last part, if the group is left out."""
        whole = nearest(key, self.known_keys)
        if whole:
            return whole
        by_last_part = {known.rsplit(".", 1)[-1]: known for known in self.known_keys}
        close = nearest(key.rsplit(".", 1)[-1], by_last_part)
        return close and re.sub(r"'(.+)'", lambda match: f"'{by_last_part[match[1]]}'", close)


def _keys(arguments_class: type[Dataclass], prefix: str = "") -> dict[str, object]:
    """Return the names of all settings with their types. Settings of a group have names such as `model.hidden_size`."""
    keys: dict[str, object] = {}
    for field in fields(arguments_class):
        name = prefix + field.name.removesuffix("_")
        kind: Any = field.type
        keys |= _keys(kind, f"{name}.") if is_dataclass(kind) else {name: kind}
    return keys


def flag_value(flag: str, arguments: Sequence[str]) -> str | None:
    """Return the value of a flag that must be known before the command line is parsed. None if the flag is absent."""
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
    return None


def _switches(known_keys: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the flags that may stand without a value, which then is true, and the values that they take."""
    switches = {}
    for name, kind in known_keys.items():
        kinds = get_args(kind) or (kind,)
        if bool in kinds:
            switches[name] = {"true", "false"} | {value for other in kinds for value in get_args(other)}
    return switches


def _switched_on(arguments: Sequence[str], switches: Mapping[str, set[str]]) -> list[str]:
    """Add `true` after each flag of `_switches` that has no value."""
    complete = []
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        alone = argument.startswith("--") and following.lower() not in switches.get(argument[2:], {following.lower()})
        complete += [argument, "true"] if alone else [argument]
    return complete


def _without_machines(path: Path) -> str:
    """Read a run's settings and return them as YAML, without the group `parallel`, which belongs to its machines."""
    settings = _settings_of(path, str(path))
    settings.pop("parallel", None)
    return yaml.safe_dump(settings, allow_unicode=True)


def _settings_of(path: str | Path, name: str) -> dict:
    """Read a file of settings. The parser's own error would not name the file.

    Raises:
        InputError: It holds none.
    """
    settings = read_yaml(path, name)
    if not isinstance(settings, dict):
        raise InputError(f"{name} holds no settings; they look like `model: {{num_layers: 3}}`")
    return settings


def _check_nesting(arguments: Iterable[str]) -> None:
    """Raise InputError for a value with many open brackets, which crashes the parser of YAML that reads all values."""
    for argument in arguments:
        check_brackets(argument, f"'{argument[:30]}...'")


def build_parser(arguments_class: type[Dataclass], prog: str) -> _Parser:
    """Build the parser of a dataclass.

    A nested dataclass becomes a group of flags (`--model.hidden_size`). A class with groups also gets `--config FILE`,
    and a class with a field `model` also gets `--mode NAME`. A class attribute SHORT_FLAGS gives letters to fields:
    `{"p": "prompt"}` adds `-p`.
    """
    summary = (arguments_class.__doc__ or "").split("Args:")[0].strip()
    parser = _Parser(prog=prog, description=summary, allow_abbrev=False)
    parser.known_keys = _keys(arguments_class)
    if any(is_dataclass(field.type) for field in fields(arguments_class)):
        parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="A YAML file of settings.")
        parser.known_keys |= {"config": str}
        if any(field.name == "model" for field in fields(arguments_class)):
            parser.add_argument("--mode", type=str, help=f"A model size from configs/: {', '.join(modes())}.")
            parser.known_keys |= {"mode": str}
    parser.add_class_arguments(arguments_class, as_group=False)
    for action in list(parser._actions):  # Python reserves `from`, so that field is named `from_`
        if action.dest.endswith("_"):
            flag = "--" + action.dest.removesuffix("_")
            action.option_strings = [flag]
            parser._option_string_actions[flag] = action
    for letter, name in getattr(arguments_class, "SHORT_FLAGS", {}).items():
        action = parser._option_string_actions[f"--{name}"]
        action.option_strings = [f"-{letter}", *action.option_strings]
        parser._option_string_actions[f"-{letter}"] = action
    return parser


def parse(
    arguments_class: type[Arguments],
    prog: str,
    arguments: Sequence[str] | None = None,
    base_config: Path | None = None,
    after_mode: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> Arguments:
    """Build a dataclass from a command line.

    Settings come from the defaults of the class, `--mode`, `after_mode`, `base_config`, `--config` and flags. Later
    ones win.

    Args:
        arguments_class: The dataclass. The checks in its `__post_init__` may raise InputError.
        prog: Name of the program, as its user types it.
        arguments: Command line without the program. None means `sys.argv[1:]`.
        base_config: YAML file with the settings of a checkpoint. Its group `parallel` is ignored.
        after_mode: Settings by group.

    Exits:
        With status 2 and one line on stderr if an option is unknown or a value is not allowed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(arguments_class, prog)
    switches = _switches(parser.known_keys)
    try:
        _check_nesting(arguments)
        mode = flag_value("--mode", arguments) if "mode" in parser.known_keys else None
        settings = [mode_settings(mode)] if mode else []
        if after_mode:
            settings.append(yaml.safe_dump(dict(after_mode)))
        if base_config:
            settings.append(_without_machines(base_config))
        if config := flag_value("--config", arguments):
            _settings_of(config, f"--config {config}")
        namespace = parser.parse_args(
            [part for given in settings for part in ("--config", given)] + _switched_on(arguments, switches)
        )
        namespace = parser.instantiate(namespace).as_dict()
    except InputError as error:
        fail(str(error))
    return arguments_class(**{field.name: namespace[field.name] for field in fields(arguments_class)})
