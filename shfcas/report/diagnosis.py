"""The plot of a diagnosis: the share of the reward model's errors against conflict."""

from pathlib import Path
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.evaluation.diagnose import DiagnoseConfig, diagnose
from shfcas.evaluation.judged_pairs import NEEDED, SIGNALS, from_gold
from shfcas.report.plots import COLOURS, _svg, plt
from shfcas.utils.errors import UserError
from shfcas.utils.files import atomic_file


def of_table(table: CandidateTable, group_by: str | None = None) -> dict[str, Any] | None:
    """The diagnosis of a table with a column `gold`; None where it has none, or nothing to diagnose with."""
    if any(name not in table for name in (*NEEDED, "gold")):
        return None
    try:
        pairs = from_gold(table.rows(), None, prompts=len(table), group_by=group_by)
        result = diagnose(pairs, DiagnoseConfig(group_by=group_by))
    except UserError:  # such as gold that is all alike
        return None
    return {**result, "plot": deciles(result), "names": SIGNALS}


def deciles(result: dict[str, Any]) -> str:
    """One panel a signal: the share of errors in ten parts of rising conflict, as inline SVG."""
    return _svg(_figure(result))


def save_deciles(result: dict[str, Any], path: str | Path) -> None:
    """The same as a .png or .svg file."""
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
        axes.set_xlabel(_short(title), fontsize=8)
    panels[0].set_ylabel("pairs ordered wrongly [95 %]", fontsize=9)
    return figure


def _short(title: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(title, 34))
