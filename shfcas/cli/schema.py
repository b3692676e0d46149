"""Print a JSON Schema of a command's configuration, with which editors complete and check YAML files."""

import difflib
import json
from dataclasses import dataclass
from typing import Any

from shfcas.cli import COMMANDS, command_module
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError
from shfcas.utils.schema import json_schema

INPUTS, INPUTS_HELP = "command", "the command that reads the file [run]"
CHOICES = tuple(COMMANDS)


@dataclass
class Config:
    """`shfcas schema`."""

    command: list[str] = option(list, "the command that reads the file")


def run(config: Config) -> dict[str, Any]:
    """Returns the schema."""
    name = " ".join(config.command) or "run"
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "shfcas --help lists the commands"
        raise UsageError(f"command: expected the name of a command, got {name}; {hint}")
    return json_schema(command_module(name).Config(), f"shfcas {name}")


def text(schema: dict[str, Any]) -> str:
    """Formats the schema as JSON."""
    return json.dumps(schema, indent=2, ensure_ascii=False)
