"""Check a run directory: hash every output again, check the manifest and the label database; changes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.pipeline.inspection import verify
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError

INPUTS, INPUTS_HELP = "run", "the run directory"


@dataclass
class Config:
    """`shfcas verify`."""

    run: list[str] = option(list, "the run directory")


def run(config: Config) -> dict[str, Any]:
    """Checks the run directory."""
    if len(config.run) != 1:
        raise UsageError(f"run: expected one run directory, got {' '.join(config.run) or 'none'}")
    return {"run": config.run[0], "findings": verify(Path(config.run[0]))}


def text(result: dict[str, Any]) -> str:
    """A line per finding, or one that says that all is well."""
    return "\n".join(result["findings"]) or f"{result['run']}: all outputs are as they were made"


def exit_code(result: dict[str, Any]) -> int:
    """1 if anything was found."""
    return 1 if result["findings"] else 0
