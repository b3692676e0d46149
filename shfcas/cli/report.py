"""Write one self-contained HTML page with plots about the directory of a run or of a comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.compare.tables import FACTS
from shfcas.utils.config import option


@dataclass
class Config:
    """`shfcas report`."""

    run: str = option("runs/shfcas", "the run directory")


def run(config: Config) -> dict[str, Any]:
    """Writes report.html into the run directory."""
    path = Path(config.run)
    if (path / FACTS).exists():
        from shfcas.compare.page import write_page

        return {"report": str(write_page(path))}
    from shfcas.report import write_report

    return {"report": str(write_report(path))}
