"""Plots of the performance page, as SVG for light and dark backgrounds."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import pyplot as plt

from benches.targets import Results
from shfcas.report.plots import COLOURS, OTHER, SELECTED  # and the style of the report

GREY = "#6e7a87"  # equal contrast to white and to black
INK = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "grid.color"),
    GREY,
)
OTHERS = [*(colour for colour in COLOURS if colour != SELECTED), OTHER]
RIVALS = ("torch.compile", "hyper-corr", "numpy", "scipy loop", "scipy axis", "torchmetrics")
COLOUR = dict(zip(RIVALS, OTHERS, strict=True)) | {"eager": OTHERS[1]}  # never in the same plot as hyper-corr
Series = dict[str, list[tuple[int, float]]]


def rows_plot(results: Results) -> str:
    """Plots rows per second against N, for the op and its rivals."""
    panels = {
        "kendall_counts": _series(results, "kendall", "kendall_counts", ties="no"),
        "kendall_counts, many ties": _series(results, "kendall", "kendall_counts", ties="yes"),
        "pacs": _series(results, "pacs", "pacs"),
        "conflict_scores": _series(results, "pacs", "conflict_scores"),
    }
    with plt.rc_context({**INK, "text.parse_math": True}):  # powers of ten on the axes
        figure, grid = plt.subplots(2, 2, figsize=(10, 8))
        for axes, (title, series) in zip(grid.flat, panels.items(), strict=True):
            for name, points in series.items():
                own = name == "shfcas"
                style = {"color": SELECTED, "linewidth": 2.2} if own else {"color": COLOUR[name], "linewidth": 1.2}
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **style)
            _by_n(axes, title, sorted({n for points in series.values() for n, _ in points}))
            axes.set_ylabel("rows/s")
            if series:
                axes.legend(frameon=False, fontsize=8)
        return _svg(figure)


def ratio_plot(results: Results) -> str:
    """Plots the speed of the op as a multiple of its best rival's, against N."""
    lines = {
        "kendall_counts": _ratio(results, "kendall", "kendall_counts", ties="no"),
        "kendall_counts, many ties": _ratio(results, "kendall", "kendall_counts", ties="yes"),
        "pacs": _ratio(results, "pacs", "pacs"),
        "conflict_scores": _ratio(results, "pacs", "conflict_scores"),
    }
    with plt.rc_context({**INK, "text.parse_math": True}):  # powers of ten on the axes
        figure, axes = plt.subplots(figsize=(10, 4))
        for (name, points), colour in zip(lines.items(), (SELECTED, *OTHERS), strict=False):
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=colour)
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
        _by_n(axes, "", sorted({n for points in lines.values() for n, _ in points}))
        axes.set_ylabel("times the best rival")
        axes.legend(frameon=False, fontsize=8)
        return _svg(figure)


def _series(results: Results, bench: str, name: str, **facts: Any) -> Series:
    """Returns rows per second by N, for the op and every rival."""
    series: Series = {}
    for case in _cases(results, bench, name, **facts):
        series.setdefault("shfcas", []).append((case["N"], case["rows/s"]))
        for rival in COLOUR:
            if f"x {rival}" in case:
                series.setdefault(rival, []).append((case["N"], case["rows/s"] / case[f"x {rival}"]))
    return series


def _ratio(results: Results, bench: str, name: str, **facts: Any) -> list[tuple[int, float]]:
    cases = _cases(results, bench, name, **facts)
    return [(case["N"], min(value for key, value in case.items() if key.startswith("x "))) for case in cases]


def _cases(results: Results, bench: str, name: str, **facts: Any) -> list[dict[str, Any]]:
    wanted = {"case": name, "dtype": "float32", "threads": 1, **facts}
    cases = results.get(bench, {}).get("cases", [])
    return [case for case in cases if all(case.get(key) == fact for key, fact in wanted.items())]


def _by_n(axes: Any, title: str, lengths: list[int]) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, map(str, lengths))
    axes.set_xlabel("N, values of a row")


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return buffer.getvalue()
