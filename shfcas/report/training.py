"""Files beside a trained reward model: its metrics and a plot of its calibration."""

from pathlib import Path
from typing import Any

from shfcas.utils.files import write_json, write_text


def write_training_report(folder: Path, metrics: dict[str, Any]) -> None:
    """Writes `training.json` and, with enough held-out pairs, `calibration.svg` into a reward model's folder."""
    write_json(folder / "training.json", metrics)
    if metrics.get("held_out"):
        from shfcas.report.plots import calibration

        plot = calibration({"held-out pairs": metrics["held_out"]["calibration"]})
        if plot:
            write_text(folder / "calibration.svg", plot)
