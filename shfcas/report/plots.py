"""Plots of the report as inline SVG."""

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from shfcas.conflicts.columns import policy_scores
from shfcas.conflicts.summary import KENDALL_BINS, MAX_PACS, PACS_BINS, ConflictSummary
from shfcas.data.candidates import CandidateTable
from shfcas.evaluation.metrics import z_scores
from shfcas.utils.files import atomic_file
from shfcas.utils.text import ACTING

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

SELECTED, OTHER = "#d1495b", "#9aa5b1"
COLOURS = ("#30638e", "#edae49", "#d1495b", "#00798c", "#66497a", "#6b8f71")
plt.rcParams.update(
    {
        "svg.hashsalt": "shfcas",  # equal data gives equal files
        "svg.fonttype": "none",  # text stays text, in whatever letters
        "text.parse_math": False,  # a $ is a dollar
        "text.usetex": False,  # whatever a file of the user's says
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "figure.dpi": 100,
    }
)


def inline_svg(figure: Any, tight: bool = True) -> str:
    """Renders a figure as an `<svg>` element and closes it."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has the letters
        if tight:
            figure.tight_layout()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return ACTING.sub("\ufffd", text[text.index("<svg") :])  # from names in labels; XML forbids most of them


def conflict_scatter(table: CandidateTable, chosen: set[tuple[str, int]]) -> str:
    """Plots each answer's z-scored reward against its z-scored policy score, with selected answers in colour."""
    scores = table.split(policy_scores(table.batch(), table.metadata.get("policy_score", "logprob")).values)
    x = np.concatenate([z_scores(s) for s in scores])
    y = np.concatenate([z_scores(r) for r in table.column("rewards")])
    ids = table.column("prompt_id")
    picked = np.array([(p, i) in chosen for p, s in zip(ids, scores, strict=True) for i in range(len(s))])
    figure, axes = plt.subplots(figsize=(5.2, 4.4))
    axes.plot([-2.6, 2.6], [-2.6, 2.6], color="#444", linewidth=0.8, linestyle="--", label="agreement")
    axes.scatter(x[~picked], y[~picked], s=9, color=OTHER, alpha=0.6, linewidths=0, label="not selected")
    axes.scatter(x[picked], y[picked], s=13, color=SELECTED, alpha=0.85, linewidths=0, label="selected")
    axes.set_xlabel("policy score (z-score within the prompt)")
    axes.set_ylabel("proxy reward (z-score within the prompt)")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return inline_svg(figure)


def kendall_histogram(table: CandidateTable, chosen: set[str]) -> str:
    """Plots the distribution of the prompts' Kendall distances, with selected prompts in colour."""
    distance = np.array(table.column("kendall_distance"))
    picked = np.array([p in chosen for p in table.column("prompt_id")])
    bins = np.linspace(0, 1, 21).tolist()
    figure, axes = plt.subplots(figsize=(5.2, 4.4))
    axes.hist(
        [distance[picked], distance[~picked]],
        bins=bins,
        stacked=True,
        color=[SELECTED, OTHER],
        label=["selected", "not selected"],
    )
    axes.axvline(0.5, color="#444", linewidth=0.8, linestyle="--")
    axes.set_xlabel("Kendall-tau distance of policy and reward (0.5: unrelated)")
    axes.set_ylabel("prompts")
    axes.legend(frameon=False, fontsize=8)
    return inline_svg(figure)


CURVES = {  # metrics by their x-axis
    "rollout": {
        "objective/scores": "reward (trained on)",
        "objective/gold": "gold reward (not trained on)",
        "objective/kl": "KL to the previous policy (nats)",
    },
    "step": {
        "loss": "loss on pairs",
        "rewards/accuracies": "pairs ordered as the reward does",
        "rewards/margins": "margin of the log-ratios",
    },
}


def training_curves(histories: dict[str, list[dict[str, Any]]]) -> str:
    """Plots reward, gold reward and KL over the rollouts of each policy stage; for RSO and DPO, metrics over steps.

    A metric that no stage has is left out.
    """
    by = (
        "step"
        if any({"rso/pairs", "dpo/pairs"} & row.keys() for history in histories.values() for row in history)
        else "rollout"
    )
    rows = [row for history in histories.values() for row in history if by in row]
    curves = {name: title for name, title in CURVES[by].items() if any(name in row for row in rows)}
    if not curves:
        return ""
    figure, (panels,) = plt.subplots(1, len(curves), figsize=(11, 3.6), squeeze=False)
    for axes, (name, title) in zip(panels, curves.items(), strict=True):
        for colour, (label, history) in zip(COLOURS * 8, histories.items(), strict=False):
            points = [(row[by], row[name]) for row in history if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(by)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(frameon=False, fontsize=8)
    return inline_svg(figure)


def accuracy_by_group(groups: dict[str, dict[str, dict[str, float]]]) -> str:
    """Plots the reward model's accuracy on gold-labelled held-out pairs, by group of prompts."""
    if not groups:
        return ""
    names = list(next(iter(groups.values())))
    figure, axes = plt.subplots(figsize=(11, 3.6))
    width = 0.8 / len(groups)
    for k, (label, values) in enumerate(groups.items()):
        heights = [values[name]["pair_accuracy"] for name in names]
        x = np.arange(len(names)) + k * width
        axes.bar(x, heights, width * 0.92, label=label, color=COLOURS[k % len(COLOURS)])
    axes.axhline(0.5, color="#444", linewidth=0.8, linestyle="--")
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names)
    axes.set_ylim(0, 1)
    axes.set_ylabel("pair accuracy (0.5: chance)")
    axes.legend(frameon=False, fontsize=8, ncols=len(groups))
    return inline_svg(figure)


def conflict_histograms(summary: ConflictSummary, path: str) -> None:
    """Writes histograms of the Kendall distance and of abs(PACS) over a whole table, as .png or .svg."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for axes, counts, width, label in (
        (left, summary.kendall, 1 / KENDALL_BINS, "Kendall distance of a prompt"),
        (right, summary.pacs, MAX_PACS / PACS_BINS, "abs(PACS) of an answer"),
    ):
        axes.bar([i * width for i in range(len(counts))], counts, width, align="edge", color=COLOURS[0])
        axes.set_xlabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("prompts")
    right.set_ylabel("answers")
    last = max((i for i, count in enumerate(summary.pacs) if count), default=0)
    right.set_xlim(0, (last + 2) * MAX_PACS / PACS_BINS)
    figure.suptitle(f"{summary.prompts:,} prompts, {summary.answers:,} answers", fontsize=10)
    figure.tight_layout()
    with atomic_file(path) as partial:
        figure.savefig(partial, format=Path(path).suffix.removeprefix(".") or "png")
    plt.close(figure)


CALIBRATION_PAIRS = 20  # a curve of fewer held-out pairs would show noise


def calibration(models: dict[str, dict[str, Any]]) -> str:
    """Plots reward models' accuracy on held-out pairs against confidence; calibrated models are on the diagonal.

    Models with fewer than `CALIBRATION_PAIRS` pairs are left out; the plot is empty without others.

    Args:
        models: by label, the `calibration` of `shfcas.rewards.metrics.pair_report`.
    """
    models = {
        label: result
        for label, result in models.items()
        if sum(part["count"] for part in result["bins"]) >= CALIBRATION_PAIRS
    }
    if not models:
        return ""
    figure, axes = plt.subplots(figsize=(5.2, 4.4))
    axes.plot([0.5, 1], [0.5, 1], color="#444", linewidth=0.8, linestyle="--", label="calibrated")
    for colour, (label, result) in zip(COLOURS * 8, models.items(), strict=False):
        bins = result["bins"]
        x, y = [b["confidence"] for b in bins], [b["mean"] for b in bins]
        whiskers = [[b["mean"] - b["low"] for b in bins], [b["high"] - b["mean"] for b in bins]]
        label = f"{label} (expected error {result['expected_error']:.2f})"
        axes.errorbar(x, y, yerr=whiskers, color=colour, marker="o", markersize=4, linewidth=1, capsize=2, label=label)
    axes.set_xlim(0.49, 1.01)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence: sigmoid of the reward difference")
    axes.set_ylabel("accuracy [95 %]")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return inline_svg(figure)
