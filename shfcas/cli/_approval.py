"""Approval of making finished stages again: `--yes`, or an answer on the terminal."""

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from shfcas.pipeline.run_directory import Plan
from shfcas.utils.config import option

Settings = TypeVar("Settings")


def yes_option() -> Any:
    """Makes the field `yes` of a command's configuration."""
    return option(False, "make finished stages again that depend on a change, without asking", volatile=True)


def without_flags(config: Any, settings: type[Settings]) -> Settings:
    """Returns the part of a command's configuration that a run is made with, without flags of the command itself."""
    return settings(**{field.name: getattr(config, field.name) for field in fields(settings)})  # type: ignore[arg-type]


def approval(command: str, yes: bool) -> Callable[[Plan], bool]:
    """Returns a function that tells whether stale stages may be made again; it asks on a terminal."""

    def approve(planned: Plan) -> bool:
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        print(f"shfcas {command}: {planned.stale_text()}", file=sys.stderr)
        print("make them again? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return approve
