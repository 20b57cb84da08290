"""`asr-doge --print_completion SHELL`: a script with which a shell completes commands, flags, choices and file names.

Promises: the flags and choices are those of the parsers that read the command line. jsonargparse and shtab write the
script; the latter comes with the extra `completion`.
"""

from argparse import Action
from collections.abc import Iterable
from importlib.util import find_spec

from jsonargparse import ArgumentParser

from asr_doge.cli.commands import COMMANDS, command_parser
from asr_doge.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")


def completion_script(shell: str) -> str:
    """The script, for the shell to source.

    Raises:
        ConfigError: another shell, or shtab is not installed.
    """
    if shell not in SHELLS:
        raise ConfigError(f"--print_completion '{shell}': choose from {', '.join(SHELLS)}")
    if find_spec("shtab") is None:
        raise ConfigError("--print_completion needs shtab: pip install 'asr-doge[completion]'")
    command = ArgumentParser(prog="asr-doge")
    kinds = command.add_subcommands(dest="command")
    parsers = {name: command_parser(name) for name in COMMANDS}
    for name, parser in parsers.items():
        _complete_files(parser._actions)
        first, _, second = name.partition(" ")
        if not second:
            kinds.add_subcommand(first, parser, help=COMMANDS[name].meaning)
            seconds = [other for other in COMMANDS if other.startswith(f"{first} ")]
            below = parser.add_subcommands(required=False, dest="kind") if seconds else None
            for other in seconds:
                assert below is not None
                below.add_subcommand(other.partition(" ")[2], parsers[other], help=COMMANDS[other].meaning)
    return command.get_completion_script(f"shtab-{shell}")


def _complete_files(actions: Iterable[Action]) -> None:
    """Offer file names where any text is taken, and no second form of lists, which only configuration files need."""
    import shtab

    for action in actions:
        action.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        if action.nargs != 0 and getattr(action, "_typehint", action.type) in (str, str | None, list[str]):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's way, new to argparse
