"""Show the stages of a run directory: state, time, and why a stage was made again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.pipeline.inspection import status
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError

INPUTS, INPUTS_HELP = "run", "the run directory"


@dataclass
class Config:
    """`shfcas status`."""

    run: list[str] = option(list, "the run directory")


def run(config: Config) -> dict[str, Any]:
    """Reads the manifest."""
    if len(config.run) != 1:
        raise UsageError(f"run: expected one run directory, got {' '.join(config.run) or 'none'}")
    return status(Path(config.run[0]))


def text(result: dict[str, Any]) -> str:
    """A line per stage."""
    width = max((len(stage["name"]) for stage in result["stages"]), default=0)
    rows = []
    for stage in result["stages"]:
        row = (
            f"{stage['name']:<{width}}  {stage['state']:<7}  {stage['seconds']:>8.1f} s  {'; '.join(stage['because'])}"
        )
        rows.append(row.rstrip())
    return "\n".join([*rows, f"all stages: {result['seconds'] / 60:.1f} minutes"])
