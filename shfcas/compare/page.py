"""The page of a comparison: set-up, curves, tables, tests, detection and threats, in one self-contained file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shfcas.compare.cells import BLIND, ELSEWHERE, NONE
from shfcas.compare.config import BASELINE
from shfcas.compare.statistics import Key, Row, curves, keys_of
from shfcas.compare.tables import FACTS, NAMES, RESULTS, TESTED, all_tests, grid, test_cells
from shfcas.data.candidates import read_candidates
from shfcas.evaluation.metrics import detection
from shfcas.utils.files import existing, read_json, read_parquet, write_text

DRAWN = (
    Key("pair_accuracy"),
    Key("pair_accuracy", BLIND),
    Key("pair_accuracy", ELSEWHERE),
    Key("best_of_n_gold"),
    Key("errors_found"),
    Key("blind_share"),
)


def write_page(run: Path) -> Path:
    """Writes `report.html` from what a comparison has left in its run directory; returns its path."""
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
        plot=comparison.curves({NAMES[key]: found for key in DRAWN if (found := of(means, key))}, BASELINE),
        tables={NAMES[key]: found for key in NAMES if (found := grid(means, key))},
        tests={NAMES[key]: [test_cells(test) for test in of(tests, key)] for key in TESTED if of(tests, key)},
        groups=by_group(means),
        detection=detection(table, table.column("gold")),
        diagnosis=diagnose_table(held_out := read_candidates(run / "round-0/evaluation.parquet")),
        pool=len(table),
        held_out=len(held_out),
        baseline=BASELINE,
        threats=threats(facts["config"], means, tests),
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def of(rows: Sequence[Row], key: Key) -> list[Row]:
    """The rows of one metric and group."""
    return [row for row in rows if (row["metric"], row["group"]) == key]


def by_group(means: Sequence[Row]) -> list[dict[str, str]]:
    """Pair accuracy of every group at the largest budget: one row a strategy."""
    found = [row for row in means if row["metric"] == "pair_accuracy" and row["group"] not in ("", BLIND, ELSEWHERE)]
    largest = max((row["budget"] for row in found), default=0)
    table: dict[str, dict[str, str]] = {}
    for row in found:
        if row["budget"] == largest or row["strategy"] == NONE:
            table.setdefault(row["strategy"], {"strategy": row["strategy"]})[row["group"]] = f"{row['mean']:.3f}"
    return list(table.values())


def threats(config: dict[str, Any], means: Sequence[Row], tests: Sequence[Row]) -> list[str]:
    """What the numbers do not show, as far as it follows from how they were made; the gravest first."""
    seeds, found = config["seeds"], []
    without = [test for test in of(tests, Key("pair_accuracy")) if test["strategy"] == NONE]
    if without and without[-1]["high"] >= 0:
        last = without[-1]
        found.append(
            f"Random labels do not help here: with {last['budget']} of them, pair accuracy is not clearly better than "
            f"without ({-last['difference']:+.3f} [{-last['high']:+.3f}, {-last['low']:+.3f}]). Where labels "
            "teach nothing, it says little which ones are asked for: more labels, another l2, features or refine: full."
        )
    found += [
        "Seeds share the models, the sampled answers and the held-out prompts; each draws "
        f"{config['pool_share']:.0%} of the pool. Intervals and p-values over seeds are about these draws. They say "
        "nothing about other models, prompts or proxies, and treat pools that overlap as if they were independent.",
        f"The labels come from {config['gold']}, not from people, and the measures use it too."
        + (f" {config['label_noise']:.0%} of the labels were turned round." if config["label_noise"] else ""),
        "Best-of-n on held-out answers stands in for the policy: it shows what the refined reward likes among answers "
        "that the policy before already gives, not what a policy makes of it that is trained on it.",
    ]
    if config["refine"] == "head":
        found.append(
            "Only a linear head was refined, on features that stayed as they were. A full refinement can learn more "
            "from the same labels, and other things."
        )
    if seeds < 6:
        found.append(f"{seeds} seeds cannot give a two-sided p-value below {2 / 2**seeds:.3g}.")
    wanted = {row["strategy"]: row for row in means if row["metric"] == "comparisons" and row["strategy"] != NONE}
    for row in of(means, Key("comparisons")):
        if row["strategy"] in wanted and row["mean"] < row["budget"]:
            found.append(
                f"{row['strategy']} asked {row['mean']:.1f} of {row['budget']} comparisons on average: no more passed "
                "its thresholds, so there it is not compared at an equal number."
            )
    if not config["blind"]:
        found.append("No blind spot of the proxy was named, so nothing tells errors in it from errors elsewhere.")
    return found
