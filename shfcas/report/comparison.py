"""Page and plots of a comparison of strategies."""

import textwrap
from typing import Any

from shfcas.report.plots import COLOURS, inline_svg, plt
from shfcas.report.templates import page_environment

MARKERS = "osD^vP*X"
STYLES = ("-", "--", ":", "-.")


def render(**values: Any) -> str:
    """Renders the page from the values that `shfcas.compare.page` collects."""
    return page_environment().get_template("comparison.html.j2").render(**values)


def curves(panels: dict[str, list[dict[str, Any]]], baseline: str) -> str:
    """Plots means over budgets with 95 % bands: a panel per metric, a line per strategy, the arm without labels across.

    Args:
        panels: rows of `shfcas.compare.statistics.curves`, by title.
        baseline: the strategy to draw in grey.
    """
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.9 * columns, 3.3 * lines + 0.5), squeeze=False)
    labels: dict[str, Any] = {}
    for place, (title, rows) in zip(axes.flat, panels.items(), strict=False):
        budgets = [row["budget"] for row in rows if row["budget"]]
        if not budgets:
            continue
        ends = [min(budgets) - 0.04 * max(budgets), max(budgets) * 1.04]
        names = list(dict.fromkeys(row["strategy"] for row in rows if row["budget"]))
        for row in rows:
            if row["budget"] == 0:
                labels.setdefault(
                    "no labels", place.plot(ends, [row["mean"]] * 2, color="#444", linewidth=1, ls=":")[0]
                )
                place.fill_between(ends, row["low"], row["high"], color="#444", alpha=0.07, linewidth=0)
        others = [name for name in names if name != baseline]
        for name in names:
            own = [row for row in rows if row["strategy"] == name and row["budget"]]
            drawn = sorted(own, key=lambda row: row["budget"])
            x, y = [row["budget"] for row in drawn], [row["mean"] for row in drawn]
            number = others.index(name) if name in others else -1
            colour = "#6b7785" if number < 0 else COLOURS[number % len(COLOURS)]
            style = STYLES[max(number, 0) // len(COLOURS) % len(STYLES)]
            marker = MARKERS[max(number, 0) % len(MARKERS)]
            line = place.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.4, linestyle=style)[0]
            place.fill_between(
                x, [r["low"] for r in drawn], [r["high"] for r in drawn], color=colour, alpha=0.13, linewidth=0
            )
            labels.setdefault(name, line)
        place.set_title(textwrap.fill(title, 44), fontsize=9)
        place.set_xlabel("comparisons")
        place.set_xlim(*ends)
        place.set_xticks(sorted(set(budgets)))
    for place in list(axes.flat)[len(panels) :]:
        place.set_axis_off()
    figure.legend(
        labels.values(), labels.keys(), loc="lower center", ncols=min(6, len(labels)), frameon=False, fontsize=8
    )
    figure.tight_layout(rect=(0, 0.06 + 0.02 * (len(labels) // 7), 1, 1))
    return inline_svg(figure, tight=False)
