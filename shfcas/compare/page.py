"""Page of a comparison: set-up, curves, tables, tests, detection and threats, in one self-contained file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shfcas.compare.cells import BLIND, ELSEWHERE, NONE
from shfcas.compare.config import BASELINE
from shfcas.compare.statistics import Key, Row, curves, keys_of
from shfcas.compare.tables import FACTS, NAMES, RESULTS, TESTED, all_tests, means_table, test_cells
from shfcas.data.candidates import read_candidates
from shfcas.evaluation.metrics import detection
from shfcas.utils.files import existing, read_json, write_text
from shfcas.utils.parquet import read_parquet

PLOTTED = (
    Key("pair_accuracy"),
    Key("pair_accuracy", BLIND),
    Key("pair_accuracy", ELSEWHERE),
    Key("best_of_n_gold"),
    Key("errors_found"),
    Key("blind_share"),
)


def write_page(run: Path) -> Path:
    """Writes `report.html` from the outputs in a comparison's run directory; returns its path."""
    from shfcas.report import comparison
    from shfcas.report.diagnosis import diagnose_table

    facts, manifest = read_json(existing(run / FACTS)), read_json(run / "manifest.json")
    rows: list[Row] = read_parquet(run / RESULTS).to_pylist()
    means = [row for key in keys_of(rows) for row in curves(rows, key)]
    tests = all_tests(rows)
    table = read_candidates(run / "pool.parquet")
    page = comparison.render(
        title=run.name,
        config=facts["config"],
        facts=facts,
        versions=manifest["versions"],
        stages={name: stage for name, stage in manifest["stages"].items() if stage["state"] == "done"},
        plot=comparison.curves({NAMES[key]: found for key in PLOTTED if (found := rows_of(means, key))}, BASELINE),
        tables={NAMES[key]: found for key in NAMES if (found := means_table(means, key))},
        tests={NAMES[key]: [test_cells(test) for test in found] for key in TESTED if (found := rows_of(tests, key))},
        groups=accuracy_by_group(means),
        detection=detection(table, table.column("gold")),
        diagnosis=diagnose_table(held_out := read_candidates(run / "round-0/evaluation.parquet")),
        pool=len(table),
        held_out=len(held_out),
        baseline=BASELINE,
        threats=threats(facts["config"], means, tests),
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def rows_of(rows: Sequence[Row], key: Key) -> list[Row]:
    """Returns the rows of one metric and group."""
    return [row for row in rows if (row["metric"], row["group"]) == key]


def accuracy_by_group(means: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the pair accuracy of every group at the largest budget: one row per strategy."""
    found = [row for row in means if row["metric"] == "pair_accuracy" and row["group"] not in ("", BLIND, ELSEWHERE)]
    largest = max((row["budget"] for row in found), default=0)
    table: dict[str, dict[str, str]] = {}
    for row in found:
        if row["budget"] == largest or row["strategy"] == NONE:
            table.setdefault(row["strategy"], {"strategy": row["strategy"]})[row["group"]] = f"{row['mean']:z.3f}"
    return list(table.values())


def threats(config: dict[str, Any], means: Sequence[Row], tests: Sequence[Row]) -> list[str]:
    """Returns the threats to validity that follow from the set-up, the most serious first."""
    seeds, found = config["seeds"], []
    without = [test for test in rows_of(tests, Key("pair_accuracy")) if test["strategy"] == NONE]
    if without and without[-1]["high"] >= 0:
        last = without[-1]
        found.append(
            f"Random labels do not help here: with {last['budget']} of them, pair accuracy is not clearly better than "
            f"without ({-last['difference']:+z.3f} [{-last['high']:+z.3f}, {-last['low']:+z.3f}]). If labels do not "
            "help, a comparison of strategies means little: try more labels, another l2, other features, or refine: "
            "full."
        )
    found += [
        "Seeds share the models, the sampled answers and the held-out prompts; each samples "
        f"{config['pool_share']:.0%} of the pool. Intervals and p-values over seeds cover only this sampling. They do "
        "not cover other models, prompts or proxies, and treat overlapping pools as independent.",
        f"The labels come from {config['gold']}, not from people, and the measurements use it too."
        + (f" {config['label_noise']:.0%} of the labels were flipped." if config["label_noise"] else ""),
        "Best-of-n on held-out answers is a proxy for policy training: it shows which answers of the current policy "
        "the refined reward prefers, not the result of training a policy on it.",
    ]
    if config["refine"] == "head":
        found.append(
            "Only a linear head was refined, on frozen features. A full refinement can learn more from the same "
            "labels, and other things."
        )
    if seeds < 6:
        found.append(f"{seeds} seeds cannot give a two-sided p-value below {2 / 2**seeds:.3g}.")
    wanted = {row["strategy"]: row for row in means if row["metric"] == "comparisons" and row["strategy"] != NONE}
    for row in rows_of(means, Key("comparisons")):
        if row["strategy"] in wanted and row["mean"] < row["budget"]:
            found.append(
                f"{row['strategy']} selected {row['mean']:z.1f} of {row['budget']} comparisons on average: no more "
                "passed its thresholds, so at this budget the comparison is not at equal numbers."
            )
    if not config["blind"]:
        found.append("No blind spot of the proxy was specified, so errors in it are not measured separately.")
    return found
