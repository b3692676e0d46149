"""Write one self-contained HTML page with plots about a run or a comparison: shfcas report RUN."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.compare.tables import FACTS
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UsageError

INPUTS, INPUTS_HELP = "folder", "directory of a run or of a comparison, as with --run"


@dataclass
class Config(Options):
    """`shfcas report`."""

    folder: list[str] = option(list, "directory of a run or of a comparison, as with run")
    run: str = option("runs/shfcas", "directory of a run or of a comparison")


def run(config: Config) -> dict[str, Any]:
    """Writes report.html into the run directory."""
    from shfcas.report import write_report  # loads matplotlib, which --help must not

    if len(config.folder) > 1:
        raise UsageError(f"expected one run directory, got {' '.join(config.folder)}")
    path = Path(*config.folder) if config.folder else Path(config.run)
    if (path / FACTS).exists():
        from shfcas.compare.page import write_page

        return {"report": str(write_page(path))}

    return {"report": str(write_report(path))}
