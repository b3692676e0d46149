"""Write one self-contained HTML page with plots about a run directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.config import option
from shfcas.report import write_report


@dataclass
class Config:
    """`shfcas report`."""

    run: str = option("runs/shfcas", "the run directory")


def run(config: Config) -> dict[str, Any]:
    """Writes report.html into the run directory."""
    return {"report": str(write_report(Path(config.run)))}
