"""Plot of a diagnosis: the share of the reward model's errors against conflict."""

import textwrap
from pathlib import Path
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.evaluation.diagnose import DiagnoseConfig, diagnose
from shfcas.evaluation.judged_pairs import NEEDED, SIGNALS, from_gold
from shfcas.report.plots import COLOURS, inline_svg, plt
from shfcas.utils.errors import UserError
from shfcas.utils.files import atomic_file


def diagnose_table(table: CandidateTable, group_by: str | None = None) -> dict[str, Any] | None:
    """Diagnoses a table with a column `gold`; returns None without that column, or without usable pairs."""
    if any(name not in table for name in (*NEEDED, "gold")):
        return None
    try:
        pairs = from_gold(table.rows(), None, prompts=len(table), group_by=group_by)
        result = diagnose(pairs, DiagnoseConfig(group_by=group_by))
    except UserError:  # for example constant gold rewards
        return None
    return {**result, "plot": deciles(result), "names": SIGNALS}


def deciles(result: dict[str, Any]) -> str:
    """Plots the share of errors by decile of each signal, as inline SVG."""
    return inline_svg(_figure(result))


def save_deciles(result: dict[str, Any], path: str | Path) -> None:
    """Writes the plot of `deciles` as a .png or .svg file."""
    figure = _figure(result)
    figure.tight_layout()
    with atomic_file(path) as partial:
        figure.savefig(partial, format=Path(path).suffix.removeprefix(".") or "png")
    plt.close(figure)


def _figure(result: dict[str, Any]) -> Any:
    figure, panels = plt.subplots(1, len(SIGNALS), figsize=(11, 3.2), sharey=True)
    for axes, (name, title), colour in zip(panels, SIGNALS.items(), COLOURS, strict=False):
        parts = [part for part in result["signals"][name]["deciles"] if part["errors"]["value"] is not None]
        x = [(part["from"] + part["to"]) / 2 for part in parts]
        y = [part["errors"]["value"] for part in parts]
        whiskers = [
            [max(0.0, part["errors"]["value"] - part["errors"]["low"]) for part in parts],
            [max(0.0, part["errors"]["high"] - part["errors"]["value"]) for part in parts],
        ]
        axes.errorbar(x, y, yerr=whiskers, color=colour, marker="o", markersize=4, linewidth=1, capsize=2)
        axes.axhline(result["errors"]["value"], color="#444", linewidth=0.8, linestyle="--")
        axes.set_xlabel(textwrap.fill(title, 34), fontsize=8)
    panels[0].set_ylabel("pairs ordered wrongly [95 %]", fontsize=9)
    return figure
