"""Draw the figure of docs/evidence-paper.md from the committed tables: `python -m experiments.figure`."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from experiments.arms import INFORMED
from experiments.grid import BUDGETS, DEFAULTS, RESULTS
from shfcas.report.plots import COLOURS, OTHER, SELECTED  # the import also sets the style of the report
from shfcas.utils.files import write_text

FIGURE = Path(__file__).parents[1] / "docs" / "plots" / "evidence.svg"
GREY = "#6e7a87"  # readable on white and on black
INK = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "grid.color"),
    GREY,
)
ARMS = {
    "shf_cas": ("SHF-CAS", SELECTED, "o"),
    "pacs": ("abs(PACS) alone", COLOURS[1], "s"),
    "reward_margin": ("largest margin", COLOURS[0], "^"),
    "random": ("random", GREY, "o"),
}
METRIC = "pair_accuracy"
REAL = {"logprob": "^", "mean_logprob": "s", "logprob_ratio": "D"}


def read(name: str) -> list[dict[str, str]]:
    """Read a committed table."""
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(row: dict[str, str], *names: str) -> list[float]:
    """Return cells of a row as numbers."""
    return [float(row[name]) for name in names]


def curve(axes: Any, rows: Iterable[dict[str, str]], task: str) -> None:
    """Plot accuracy against the number of comparisons, with the real policy's log-probability ratio."""
    rows = [row for row in rows if row["task"] == task and row["metric"] == METRIC]
    (none,) = [row for row in rows if row["strategy"] == "none"]
    axes.axhline(float(none["mean"]), color=OTHER, linestyle="--", linewidth=1, label="no labels")
    for shift, (name, (label, colour, marker)) in enumerate(ARMS.items()):
        points = sorted(
            (number(row, "budget", "mean", "low", "high") for row in rows if row["strategy"] == name),
        )
        x = [p[0] * 1.03 ** (shift - 1.5) for p in points]
        bars = [[p[1] - p[2] for p in points], [p[3] - p[1] for p in points]]
        axes.errorbar(x, [p[1] for p in points], bars, color=colour, marker=marker, markersize=4, label=label)
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS[task], [str(budget) for budget in BUDGETS[task]])
    axes.minorticks_off()
    axes.set_xlabel("comparisons asked")
    axes.set_title(task)


def gain(axes: Any, task: str) -> None:
    """Plot the gain over random feedback against what the policy's score knows, for simulated and real scores."""
    axes.axhline(0, color=GREY, linewidth=1)
    knows = {}
    for name in ("informedness", "policy_score"):
        for row in read(f"{name}_facts"):
            if row["metric"] == "policy_knows":
                knows[row["task"], row["policy"]] = float(row["mean"])
    found = [
        (knows[task, row["policy"]], row)
        for name in ("informedness", "policy_score")
        for row in read(name)
        if row["task"] == task and row["metric"] == METRIC and row["strategy"] == "shf_cas"
    ]
    simulated = sorted((x, *difference(row)) for x, row in found if row["policy"].startswith(INFORMED))
    axes.plot([p[0] for p in simulated], [p[1] for p in simulated], color=SELECTED, label="simulated score")
    axes.fill_between(*zip(*[(p[0], p[2], p[3]) for p in simulated], strict=True), color=SELECTED, alpha=0.2, lw=0)
    for x, row in found:
        if row["policy"] in REAL:
            mean, low, high = difference(row)
            axes.errorbar(
                [x],
                [mean],
                [[mean - low], [high - mean]],
                color=COLOURS[0],
                marker=REAL[row["policy"]],
                markersize=5,
                label=f"real: {row['policy']}",
            )
    axes.set_xlabel("correlation of the policy's score with gold")


def difference(row: dict[str, str]) -> tuple[float, float, float]:
    """Return the gain of SHF-CAS over random, with its interval."""
    mean, low, high = number(row, "vs_random_difference", "vs_random_low", "vs_random_high")
    return mean, low, high


def draw() -> str:
    """Return the whole figure as SVG."""
    main = read("main")
    with plt.rc_context(INK):
        figure, grid = plt.subplots(2, len(DEFAULTS), figsize=(11, 7))
        for column, task in enumerate(DEFAULTS):
            curve(grid[0, column], main, task)
            gain(grid[1, column], task)
        grid[0, 0].set_ylabel("held-out pair accuracy")
        grid[1, 0].set_ylabel("accuracy: SHF-CAS minus random")
        low, high = zip(*(axes.get_ylim() for axes in grid[1]), strict=True)
        for axes in grid[1]:
            axes.set_ylim(min(low) - 0.015, max(high))
        for axes in grid[:, 0]:
            top = axes is grid[0, 0]
            axes.legend(frameon=False, fontsize=8, loc="upper left" if top else "lower right", ncols=1 if top else 2)
        buffer = io.StringIO()
        figure.tight_layout()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return buffer.getvalue()


if __name__ == "__main__":
    write_text(FIGURE, draw())
