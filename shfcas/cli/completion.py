"""Print a script with which a shell completes commands, keys, choices and file names.

- `shfcas completion bash > ~/.local/share/bash-completion/completions/shfcas`
- `shfcas completion zsh > FOLDER/_shfcas`, a folder in `$fpath`
- `shfcas completion fish > ~/.config/fish/completions/shfcas.fish`
"""

import argparse
from dataclasses import dataclass
from typing import Any

from shfcas.cli import COMMANDS, command_module
from shfcas.cli._parser import TOPICS, CommandParser, flat_keys
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UsageError
from shfcas.utils.flags import Key

SHELLS = ("bash", "zsh", "fish")
INPUTS, INPUTS_HELP = "shell", f"shell: {', '.join(SHELLS)}"
CHOICES = SHELLS


@dataclass
class Config(Options):
    """`shfcas completion`."""

    shell: list[str] = option(list, f"shell: {', '.join(SHELLS)}")


def run(config: Config) -> str:
    """Returns the script; it is static, so completing starts no Python."""
    import shtab

    shell = " ".join(config.shell)
    if shell not in SHELLS:
        raise UsageError(f"shell: expected one of {', '.join(SHELLS)}, got {shell or 'none'}")
    return shtab.complete(_every_command(shtab.FILE), shell)


def _every_command(file: Any) -> argparse.ArgumentParser:
    """Builds a parser with all commands below it; `file` marks values that are completed with file names."""
    root = argparse.ArgumentParser(prog="shfcas", add_help=False)
    root.add_argument("--help", action="store_true", help="list the commands")
    root.add_argument("--version", action="store_true", help="print the version")
    commands: Any = root.add_subparsers(parser_class=_command_parser)  # type: ignore[call-overload]
    for name, about in COMMANDS.items():
        module = command_module(name)
        parser = commands.add_parser(name, help=about, command=name, module=module)
        parser.description = about
        keys = flat_keys(parser.config)
        for action in parser._actions:
            choices = _choices(action, keys, parser, module)
            text = action.dest == "config" or "str" in str(getattr(keys.get(action.dest), "annotation", ""))
            if choices:
                action.choices = choices
            elif text or not action.option_strings:
                action.complete = file
            action.option_strings = action.option_strings[:1]  # one spelling of each flag
    return root


def _command_parser(command: str, module: Any, **_: Any) -> CommandParser:
    return CommandParser(command, module)


def _choices(action: argparse.Action, keys: dict[str, Key], parser: CommandParser, module: Any) -> tuple[str, ...]:
    """The values that an argument is completed with; none where any value may follow."""
    if action.dest == "help":
        return (*TOPICS, *parser.sections)
    if not action.option_strings:
        return getattr(module, "CHOICES", ())
    return keys[action.dest].choices if action.dest in keys else ()
