"""Write one self-contained HTML page with plots about a run or a comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.compare.tables import FACTS
from shfcas.utils.config import Options, option


@dataclass
class Config(Options):
    """`shfcas report`."""

    run: str = option("runs/shfcas", "directory of a run or of a comparison")


def run(config: Config) -> dict[str, Any]:
    """Writes report.html into the run directory."""
    from shfcas.report import write_report  # loads matplotlib, which --help must not

    path = Path(config.run)
    if (path / FACTS).exists():
        from shfcas.compare.page import write_page

        return {"report": str(write_page(path))}

    return {"report": str(write_report(path))}
