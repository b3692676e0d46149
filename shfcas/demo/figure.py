"""The demo's figure: the reward model's accuracy against labels, with the arms that need none as lines."""

from typing import Any

from shfcas.demo.labels import LABEL_FREE, NONE, REFINED, STRATEGIES

COLOURS = {"random": "#9aa5b1", "shf_cas": "#d1495b"}
DASHES = {"pairs": (0, (3, 2)), "arbiter": "solid"}
FREE = {"reward_alone": "#444444", "equal_trust": "#30638e", "policy_alone": "#00798c"}


def labels_figure(rows: list[dict[str, Any]]) -> str:
    """Draws the held-out pair accuracy against the number of labels.

    Args:
        rows: what `shfcas.demo.labels.accuracy_against_labels` returns.

    Returns:
        An `<svg>` element; equal rows give equal text.
    """
    from shfcas.report.plots import inline_svg, plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    budgets = sorted({row["budget"] for row in rows if row["strategy"] != NONE})
    for row in rows:
        if row["strategy"] == NONE:
            axes.axhline(row["mean"], color=FREE[row["arm"]], linewidth=1, linestyle=":")
            axes.annotate(
                LABEL_FREE[row["arm"]],
                (budgets[-1], row["mean"]),
                xytext=(8, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                color=FREE[row["arm"]],
            )
    for strategy, name in STRATEGIES.items():
        for arm, use in REFINED.items():
            points = sorted(
                (r for r in rows if (r["strategy"], r["arm"]) == (strategy, arm)), key=lambda r: r["budget"]
            )
            x, y = [r["budget"] for r in points], [r["mean"] for r in points]
            errors = [[r["mean"] - r["low"] for r in points], [r["high"] - r["mean"] for r in points]]
            axes.errorbar(
                x, y, errors, color=COLOURS[strategy], linestyle=DASHES[arm], marker="o", markersize=4, capsize=2,
                elinewidth=0.8, label=f"{name} {use}",
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel("labels")
    axes.set_ylabel("held-out pair accuracy of the reward model")
    axes.legend(frameon=False, fontsize=8)
    return inline_svg(figure)
