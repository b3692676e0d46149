"""The demo's result as text: the conclusion first, then five small tables."""

from collections.abc import Sequence
from typing import Any

from shfcas.demo.labels import BUDGETS, LABEL_FREE, NONE, REFINED, STRATEGIES
from shfcas.utils.numbers import fixed, interval

GAP = "  "


def text(results: dict[str, Any]) -> str:
    """Formats the results of the demo."""
    blocks = [
        "\n".join(results["conclusion"]),
        _scores(results["scores"]),
        _labels(results["labels"]),
        _reward_models(results["reward_models"]),
        _policies(results["policies"]),
        _asked(results["asked"]),
        f"all stages took {results['seconds'] / 60:.1f} minutes",
    ]
    return "\n\n".join(blocks)


def _scores(rows: list[dict[str, Any]]) -> str:
    cells = [[row["name"], interval(row["correlation"], 2), interval(row["finds_blind"], 2)] for row in rows]
    return _table(["policy score", "correlation with gold", "conflict finds blind topics (AUROC)"], cells)


def _labels(rows: list[dict[str, Any]]) -> str:
    found = {(row["strategy"], row["arm"], row["budget"]): row["mean"] for row in rows}
    cells = [[name, fixed(found[NONE, arm, 0]), *[""] * len(BUDGETS)] for arm, name in LABEL_FREE.items()]
    for arm, use in REFINED.items():
        for strategy, name in STRATEGIES.items():
            cells.append([f"{name} {use}", "", *(fixed(found[strategy, arm, budget]) for budget in BUDGETS)])
    head = ["reward model's pair accuracy (frozen heads)", "no labels", *(f"{budget} labels" for budget in BUDGETS)]
    return _table(head, cells)


def _reward_models(rows: list[dict[str, Any]]) -> str:
    cells = [[row["arm"], *(interval(row[part], 2) for part in ("all", "sound", "blind"))] for row in rows]
    return _table(["reward model's pair accuracy (trained in full)", "all", "sound topics", "blind topics"], cells)


def _policies(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["policy"],
            fixed(row["gold_reward"]["mean"]),
            interval(row["difference"], 2, sign=True),
            fixed(row["kl"], 2),
        ]
        for row in rows
    ]
    return _table(["policy on held-out prompts", "gold reward", "difference to the base", "KL"], cells)


def _asked(asked: dict[str, Any]) -> str:
    parts = [f"{STRATEGIES[name]} {found['blind']} of {found['comparisons']}" for name, found in asked.items()]
    return f"comparisons about blind topics: {', '.join(parts)}"


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    made = [
        GAP.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join([made[0], "-" * len(made[0]), *made[1:]])
