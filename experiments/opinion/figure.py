"""Draw the figure of docs/evidence.md from the committed tables: `python -m experiments.opinion.figure`."""

import csv
import io
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from experiments.figure import GREY, INK
from experiments.opinion.grid import PRIMARY, RESULTS
from experiments.opinion.tasks import TASKS
from shfcas.report.plots import COLOURS, OTHER, SELECTED  # the import also sets the style of the report
from shfcas.utils.files import write_text

FIGURE = Path(__file__).parents[2] / "docs" / "plots" / "opinion.svg"
FREE = {
    "nothing": ("proxy as it is", OTHER, "--"),
    "equal_trust": ("second opinion", COLOURS[1], "--"),
    "policy_alone": ("policy alone", COLOURS[0], ":"),
}
LABELLED = {
    ("random", "labels"): ("random, as pairs", GREY, "o", "-"),
    ("shf_cas", "labels"): ("SHF-CAS, as pairs", SELECTED, "s", "--"),
    ("random", "arbitrate"): ("random, as arbiters", GREY, "^", "-."),
    ("shf_cas", "arbitrate"): ("SHF-CAS, as arbiters", SELECTED, "D", "-"),
}


def read(name: str, **values: Any) -> list[dict[str, str]]:
    """Read the rows of a committed table that have these values."""
    return [row for row in _table(name) if all(row[key] == str(value) for key, value in values.items())]


@cache
def _table(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def panel(axes: Any, task: str, bias: str) -> None:
    """Plot held-out accuracy against comparisons for one task, with every arm that asks nobody as a line."""
    rows = read("labels", task=task, bias=bias, score=PRIMARY, measure="accuracy")
    for arm, (label, colour, style) in FREE.items():
        (row,) = [r for r in rows if r["how"] == arm]
        axes.axhline(float(row["mean"]), color=colour, linestyle=style, linewidth=1, label=label)
    for shift, ((strategy, how), (label, colour, marker, style)) in enumerate(LABELLED.items()):
        points = sorted(
            [float(r[name]) for name in ("budget", "mean", "low", "high")]
            for r in rows
            if (r["strategy"], r["how"]) == (strategy, how)
        )
        x = [p[0] * 1.03 ** (shift - 1.5) for p in points]
        bars = [[p[1] - p[2] for p in points], [p[3] - p[1] for p in points]]
        look = {"color": colour, "marker": marker, "linestyle": style}
        axes.errorbar(x, [p[1] for p in points], bars, markersize=3.5, linewidth=1, label=label, **look)
    axes.set_xscale("log")
    ticks = sorted({int(r["budget"]) for r in rows} - {0, 24})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title(f"{task}, {'biased' if bias == 'inverted' else 'sound'} proxy")


def draw() -> str:
    """Return the figure as SVG: a column per task, a row per kind of proxy."""
    tasks = [task for task in TASKS if read("labels", task=task, bias="inverted")]
    with plt.rc_context({**INK, "svg.hashsalt": "shfcas"}):
        figure, axes = plt.subplots(2, len(tasks), figsize=(3.2 * len(tasks), 5.6), squeeze=False)
        for column, task in enumerate(tasks):
            for row, bias in enumerate(("inverted", "none")):
                panel(axes[row][column], task, bias)
        for row in axes:
            row[0].set_ylabel("held-out pair accuracy")
        for axis in axes[1]:
            axis.set_xlabel("comparisons asked")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0.1, 1, 1))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return file.getvalue()


def main() -> None:
    """Write the figure."""
    write_text(FIGURE, draw())


if __name__ == "__main__":
    main()
