"""Tables of a comparison: tidy results as Parquet, means and tests as CSV and Markdown."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shfcas.compare.cells import BLIND, ELSEWHERE
from shfcas.compare.config import BASELINE
from shfcas.compare.statistics import Key, Row, curves, keys_of, paired_tests
from shfcas.utils import parquet
from shfcas.utils.files import atomic_file, write_text
from shfcas.utils.text import one_line

RESULTS, FACTS = "results.parquet", "comparison.json"


TESTED = (
    Key("pair_accuracy"),
    Key("pair_accuracy", BLIND),
    Key("best_of_n_gold"),
    Key("policy_gold_reward"),
    Key("policy_win_rate"),
)


NAMES = {
    Key("pair_accuracy"): "pair accuracy, held-out answers",
    Key("pair_accuracy", BLIND): "pair accuracy, blind spot",
    Key("pair_accuracy", ELSEWHERE): "pair accuracy, elsewhere",
    Key("best_of_n_gold"): "gold reward of best-of-n, held-out answers (a proxy for policy training)",
    Key("best_of_n_gold", BLIND): "gold reward of best-of-n, blind spot",
    Key("best_of_n_gold", ELSEWHERE): "gold reward of best-of-n, elsewhere",
    Key("errors_found"): "fraction of labels that the proxy had wrong",
    Key("blind_share"): "fraction of labels in the blind spot",
    Key("kendall_distance"): "Kendall distance of policy and refined reward",
    Key("mean_abs_pacs"): "mean abs(PACS) of policy and refined reward",
    Key("comparisons"): "comparisons selected",
    Key("labels"): "labels (comparisons minus ties)",
    Key("policy_gold_reward"): "gold reward of the policy",
    Key("policy_win_rate"): "win rate of the policy against the initial policy",
    Key("policy_kl"): "KL of the policy from the initial policy (nats)",
}


def write_parquet(path: str | Path, rows: Sequence[Row]) -> None:
    """Writes tidy results: one row per cell and metric, `strategy`, `budget`, `seed`, `metric`, `group`, `value`."""
    import pyarrow as pa

    kinds = {"strategy": pa.string(), "budget": pa.int64(), "seed": pa.int64()}
    kinds |= {"metric": pa.string(), "group": pa.string(), "value": pa.float64()}
    with atomic_file(path) as partial:
        parquet.write_parquet(pa.Table.from_pylist(list(rows), pa.schema(list(kinds.items()))), partial)


def all_tests(rows: Sequence[Row]) -> list[Row]:
    """Computes the paired tests of every tested metric."""
    return [test for key in TESTED for test in paired_tests(rows, key, BASELINE)]


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """Writes means with intervals over seeds and paired tests, each as CSV (all numbers) and as Markdown."""
    means, tests = [row for key in keys_of(rows) for row in curves(rows, key)], all_tests(rows)
    write_csv(folder / "means.csv", means)
    write_csv(folder / "tests.csv", tests)
    pages = [f"## {name}\n\n{markdown(table)}" for key, name in NAMES.items() if (table := means_table(means, key))]
    write_text(folder / "means.md", "\n\n".join(pages) + "\n")
    pages = []
    for key in TESTED:
        if found := [test for test in tests if Key(test["metric"], test["group"]) == key]:
            pages.append(
                f"## {NAMES[key]}, minus that of {BASELINE}\n\n{markdown([test_cells(test) for test in found])}"
            )
    write_text(folder / "tests.md", "\n\n".join(pages) + "\n")


def means_table(means: Sequence[Row], key: Key) -> list[dict[str, str]]:
    """Returns one row per strategy and one column per budget; the arm without labels is in column 0."""
    chosen = [row for row in means if (row["metric"], row["group"]) == key]
    budgets = sorted({row["budget"] for row in chosen})
    found = []
    for name in dict.fromkeys(row["strategy"] for row in chosen):
        cells = {row["budget"]: format_interval(row["mean"], row) for row in chosen if row["strategy"] == name}
        found.append({"strategy": name, **{str(budget): cells.get(budget, "") for budget in budgets}})
    return found


def test_cells(test: Row) -> dict[str, str]:
    """Returns a test as readable table cells."""
    return {
        "strategy": test["strategy"],
        "comparisons": str(test["budget"]),
        "difference [95 %]": format_interval(test["difference"], test, "+"),
        "seeds better/worse": f"{test['better']}/{test['worse']} of {test['seeds']}",
        "p": f"{test['p']:.3g}",
        "p (Holm)": f"{test['p_holm']:.3g}",
    }


def format_interval(mean: float, row: Row, sign: str = "") -> str:
    """Formats a mean with its interval; that of a single seed has none."""
    low, high = row["low"], row["high"]
    return f"{mean:{sign}z.3f}" + ("" if low != low else f" [{low:{sign}z.3f}, {high:{sign}z.3f}]")


def mean_seconds(done: Sequence[dict[str, Any]]) -> list[Row]:
    """Computes the mean time of a cell, for each strategy and budget; only these numbers differ between runs."""
    times: dict[tuple[str, int], list[float]] = {}
    for cell in done:
        times.setdefault((cell["strategy"], cell["budget"]), []).append(cell["seconds"])
    return [
        {"strategy": name, "budget": budget, "cells": len(values), "seconds": round(sum(values) / len(values), 4)}
        for (name, budget), values in sorted(times.items())
    ]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows with equal keys as CSV."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())


def markdown(rows: Sequence[dict[str, str]], *, marked_up: bool = False) -> str:
    """Formats rows of text as a Markdown table.

    Args:
        rows: the cells by column.
        marked_up: the cells are Markdown themselves and not text, so only the bar is escaped.
    """
    cell = _bar_escaped if marked_up else _cell
    cells = [[cell(text) for text in line] for line in (list(rows[0]), *(row.values() for row in rows))]
    first, *others = ("| " + " | ".join(line) + " |" for line in cells)
    return "\n".join([first, "|" + "---|" * len(rows[0]), *others])


def _bar_escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _cell(text: str) -> str:
    """Returns a text as one cell of a Markdown table, without HTML, code or formulas of its own."""
    return re.sub(r"([\\`|$])", r"\\\1", one_line(text)).replace("<", "&lt;")
