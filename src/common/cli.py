"""Command lines out of dataclasses: flags, `--help` and YAML all come from the fields and their docstrings."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

import jsonargparse
import yaml

from src.common.errors import InputError, fail, nearest
from src.common.model_sizes import mode_file, modes


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Arguments = TypeVar("Arguments", bound=Dataclass)


class _Parser(jsonargparse.ArgumentParser):
    """Reports any error in one line, with the nearest known name for an unknown one."""

    known_keys: Mapping[str, object] = MappingProxyType({})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown_flag = re.match(r"unrecognized arguments: (--)?([^\s=]+)", message, re.IGNORECASE)
        unknown_key = re.search(
            r"(?:Group '([^']*)' does not accept (?:option|nested key) '([^']+)'"
            r"|Option '([^']+)' is not accepted)",
            message,
        )
        if unknown_flag and unknown_flag[1]:
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
        """The nearest known key: compared whole, and then by its last part, for those who leave out the group."""
        whole = nearest(key, self.known_keys)
        if whole:
            return whole
        by_last_part = {known.rsplit(".", 1)[-1]: known for known in self.known_keys}
        close = nearest(key.rsplit(".", 1)[-1], by_last_part)
        return close and re.sub(r"'(.+)'", lambda match: f"'{by_last_part[match[1]]}'", close)


def _keys(arguments_class: type[Dataclass], prefix: str = "") -> dict[str, object]:
    """Names of all settings, with their types."""
    keys: dict[str, object] = {}
    for field in fields(arguments_class):
        name = prefix + field.name.removesuffix("_")
        kind: Any = field.type
        keys |= _keys(kind, f"{name}.") if is_dataclass(kind) else {name: kind}
    return keys


def flag_value(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of `flag` on a command line, for what must be known before it is parsed."""
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
    return None


def _switched_on(arguments: Sequence[str], switches: Iterable[str]) -> list[str]:
    """The command line with `true` after each yes-or-no flag that stands alone."""
    complete = []
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        alone = argument.startswith("--") and argument[2:] in switches and following.lower() not in ("true", "false")
        complete += [argument, "true"] if alone else [argument]
    return complete


def _without_machines(path: Path) -> str:
    """A run's settings as YAML, but for the machines that it ran on."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings.pop("parallel", None)
    return yaml.safe_dump(settings, allow_unicode=True)


def _check_settings_file(path: str | Path) -> None:
    """What is wrong with a file is told with its name, before the parser tells it without."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} can't be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"--config {path} holds no settings; they look like `model: {{num_layers: 3}}`")


def build_parser(arguments_class: type[Dataclass], prog: str) -> _Parser:
    """The parser of a dataclass; nested dataclasses become groups (`--model.hidden_size`). A class's SHORT_FLAGS give
    letters to some of its fields (`{"p": "prompt"}`: `-p`).

    A class with nested groups also gets `--config FILE`, and one with a `model` also `--mode NAME`.
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
    for action in list(parser._actions):  # a field can't be named `from`, but `from_`
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
    arguments_class: type[Arguments], prog: str, arguments: Sequence[str] | None = None, base_config: Path | None = None
) -> Arguments:
    """Build a dataclass from a command line.

    Later wins: the class's defaults, `--mode`, `base_config`, `--config`, single flags.

    Args:
        arguments_class: The dataclass; its `__post_init__` checks may raise InputError.
        prog: The program's name, as its user types it.
        arguments: The command line without the program; `sys.argv[1:]` when None.
        base_config: A YAML file of settings that only `--config` and flags override: a checkpoint's own, of which
            `parallel` is left out.

    Exits:
        With status 2 and one line for anything unknown or impossible.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(arguments_class, prog)
    switches = [name for name, kind in parser.known_keys.items() if kind is bool]
    try:
        mode = flag_value("--mode", arguments) if "mode" in parser.known_keys else None
        settings = [str(mode_file(mode))] if mode else []
        if base_config:
            settings.append(_without_machines(base_config))
        if config := flag_value("--config", arguments):
            _check_settings_file(config)
        namespace = parser.parse_args(
            [part for given in settings for part in ("--config", given)] + _switched_on(arguments, switches)
        )
        namespace = parser.instantiate(namespace).as_dict()
    except InputError as error:
        fail(str(error))
    return arguments_class(**{field.name: namespace[field.name] for field in fields(arguments_class)})
