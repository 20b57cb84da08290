"""Make a command line and a YAML file format from documented dataclasses.

Promises: every field of a command's dataclass is a flag of the same name; flags override the values of `--config
FILE.yaml`, in any order; a file may serve several commands, with a section for each; a mistake is one line that names
the flag or file. It does not know what the commands do.
"""

import dataclasses
import json
import re
from argparse import Action, ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from asr_doge.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: .* Given value: (.*)"
)
_LIST_METAVAR = re.compile(r"--(\w+) \[ITEM,\.\.\.\](, --\1\+ \[ITEM,\.\.\.\])?")


def _plain_list(match: re.Match[str]) -> str:
    return f"--{match[1]} {match[1].upper()} ..."


class _HelpFormatter(DefaultHelpFormatter):
    """Prints classes as in an annotation (Path, not <class 'Path'>), and lists in the form that `_spell_out` takes."""

    def _format_action_invocation(self, action: Action) -> str:
        return _LIST_METAVAR.sub(_plain_list, super()._format_action_invocation(action))

    def _format_usage(self, *arguments: Any, **options: Any) -> str:
        return _LIST_METAVAR.sub(_plain_list, super()._format_usage(*arguments, **options))

    def _expand_help(self, action: Action) -> str:
        return _CLASS.sub(r"\1", super()._expand_help(action))


def build_parser(name: str, config_class: type[Config], example: str, positional: str | None = None) -> ArgumentParser:
    """The parser of a command.

    Args:
        name: of the command.
        config_class: a dataclass with a docstring under every field.
        example: a command line for `--help`.
        positional: the field that arguments without a flag go to, a list of strings.
    """
    parser = ArgumentParser(
        prog=f"asr-doge {name}",
        description=f"{(config_class.__doc__ or '').strip()} For example: {example}",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,  # a mistyped flag is an error, not a guess; and `--config` must be seen as such
    )
    parser.add_argument("--config", action="config", help="YAML file of values that flags override.")
    if positional:
        parser.add_argument(positional, nargs="*", type=str, default=[], help=_field_help(config_class, positional))
    parser.add_class_arguments(config_class, as_group=False, skip={positional} if positional else set())
    return parser


def parse_config(
    parser: ArgumentParser,
    command: str,
    config_class: type[Config],
    arguments: Sequence[str],
    sections: Sequence[str],
    positional: str | None = None,
) -> Config:
    """A command's configuration from its command line.

    Args:
        parser: of `build_parser`.
        command: its name, which is also its section in a YAML file, with an underscore between two words.
        config_class: as in `build_parser`.
        arguments: what follows the command on the command line.
        sections: names that sections of a YAML file may bear: those of all commands.
        positional: as in `build_parser`; such arguments may stand anywhere.

    Raises:
        ConfigError: a flag or value that cannot be used.
        SystemExit: after `--help`.
    """
    files, spelled, without_flag = _spell_out(arguments, command.replace(" ", "_"), config_class, sections)
    try:
        # argparse itself takes such arguments in one place only, so that they are kept from it.
        namespace = parser.parse_args([*files, *spelled] if positional else [*files, *spelled, *without_flag])
    except ArgumentError as error:
        raise ConfigError(f"asr-doge {command}: {_one_line(error)}; see asr-doge {command} --help") from error
    values = {field.name: namespace[field.name] for field in dataclasses.fields(config_class)}
    if positional:  # argparse empties what no argument gives, even where a file has given it
        in_files = [content[positional] for content in map(_content, files) if positional in content]
        values[positional] = without_flag or (in_files[-1] if in_files else [])
    return config_class(**values)


def _spell_out(
    arguments: Sequence[str], command: str, config_class: type, sections: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Convert arguments to jsonargparse's form: configuration files, flags, and arguments without a flag.

    Files come first, each as its section of the YAML, so that flags override them; a boolean `--flag` becomes
    `--flag=true` (see `_switch`), and `--flag a b` of a list `--flag=["a", "b"]`.
    """
    fields = dataclasses.fields(config_class)
    switches = {f"--{field.name}": field.default is True for field in fields if field.type in (bool, "bool")}
    lists = {f"--{field.name}": get_args(field.type)[0] for field in fields if get_origin(field.type) is list}
    flags = {f"--{field.name}" for field in fields}
    files: list[str] = []
    spelled: list[str] = []
    without_flag: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        flag, equals, value = argument.partition("=")
        if flag == "--config":
            if not equals and not pending:
                raise ConfigError("--config needs a file")
            files.append(f"--config={_section(Path(value if equals else pending.pop(0)), command, sections)}")
        elif argument in switches:
            spelled.append(f"{argument}={_switch(pending, switches[argument])}")
        elif argument in lists:
            count = next((i for i, later in enumerate(pending) if later.startswith("--")), len(pending))
            spelled.append(f"{argument}={_yaml_list(pending[:count], lists[argument])}")
            del pending[:count]
        elif argument == "--":
            without_flag += pending
            break
        elif argument in flags and pending and not pending[0].startswith("--"):
            spelled += [argument, pending.pop(0)]
        elif argument.startswith("-") and argument != "-":
            spelled.append(argument)
        else:
            without_flag.append(argument)
    return files, spelled, without_flag


def _switch(pending: list[str], is_on: bool) -> str:
    """The value of a boolean flag: the next argument if that is a value, else true.

    After a flag that is on by default, any next argument is its value; after one that is off, it may be a file.
    """
    if pending and (pending[0].lower() in ("true", "false") or (is_on and not pending[0].startswith("--"))):
        return pending.pop(0)
    return "true"


def _yaml_list(values: Sequence[str], kind: type) -> str:
    """A list as YAML; strings are quoted, and the parser checks other values."""
    return json.dumps(values) if kind is str else f"[{', '.join(values)}]"


def _section(path: Path, command: str, sections: Sequence[str]) -> str:
    """The part of a YAML file that is for `command`, as YAML."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected 'name: value' lines")
    if not any(isinstance(part, dict) for part in content.values()):
        return yaml.safe_dump(content)
    for name, part in content.items():  # a value outside a section, or in an unknown one, would be ignored silently
        if name not in sections or not isinstance(part, dict | None):
            raise ConfigError(f"--config {path}: '{name}' is not a section; a section bears the name of a command")
    return yaml.safe_dump(content.get(command) or {})


def _content(file: str) -> dict[str, object]:
    """The settings in a `--config=YAML` argument."""
    content: dict[str, object] = yaml.safe_load(file.partition("=")[2])
    return content


def _field_help(config_class: type, name: str) -> str:
    """Help of a positional argument, kept in its field's metadata since it has no flag."""
    return str(next(field for field in dataclasses.fields(config_class) if field.name == name).metadata["help"])


def _one_line(error: ArgumentError) -> str:
    """The parser's message in one line, without Python's notation of types."""
    line = " ".join(line.strip() for line in str(error).splitlines() if line.strip()).replace("Parser key", "flag")
    line = _CLASS.sub(r"\1", _UNION.sub(r"Expected a \1. Got value: \2", line)).replace(", NoneType", "")
    return re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", line)
