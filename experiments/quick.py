"""Make one table in seconds, from a small committed pool of numbers: `make experiments-quick`.

`--check` compares it with the committed table, to the digit. `--build` makes the small pool from a large one.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.arms import INFORMED, some_answers
from experiments.grid import DEFAULTS, RESULTS, Plan, run_setting, tables, write_table
from experiments.numbers import PER_ANSWER, Numbers
from shfcas.utils.errors import UserError
from shfcas.utils.progress import progress

DATA = Path(__file__).parent / "data" / "quick.npz"
TABLE = RESULTS / "quick.csv"
SEEDS = 6
PROMPTS, ANSWERS, PAIRS = 72, 8, 480
SHOWN = ("pair_accuracy", "pair_accuracy|(blind spot)", "best_of_n_gold", "errors_found", "labels")
PLAN = Plan(
    tuple(replace(DEFAULTS["sentiment"], policy=policy) for policy in ("logprob_ratio", f"{INFORMED}0.4")),
    ("random", "shf_cas", "pacs"),
)


def build(whole: Path) -> None:
    """Write a part of a task's numbers, quantised: some prompts, 8 answers each, some of the proxy's pairs."""
    numbers = some_answers(Numbers.load(whole), ANSWERS, "mixed")
    prompts = np.sort(np.random.default_rng(0).choice(len(numbers.prompts), PROMPTS, replace=False))
    inside = np.isin(np.repeat(np.arange(len(numbers.prompts)), np.diff(numbers.offsets)), prompts)
    counts = np.diff(numbers.offsets)[prompts]
    pairs = np.sort(np.random.default_rng(1).choice(len(numbers.pairs), PAIRS, replace=False))
    small = replace(
        numbers,
        prompts=numbers.prompts[prompts],
        groups=numbers.groups[prompts],
        offsets=np.concatenate([[0], counts.cumsum()]),
        **{name: getattr(numbers, name)[inside] for name in PER_ANSWER},
        **{name: getattr(numbers, name)[pairs] for name in ("pairs", "pair_groups", "pair_words", "pair_prompts")},
    )
    small.quantised(DATA)


def make(path: Path, seeds: int = SEEDS) -> None:
    """Run the experiment and write its table."""
    numbers, done = Numbers.load(DATA), {}
    for setting in progress(PLAN.settings, "settings"):
        for seed in range(seeds):
            done[setting, seed] = run_setting(numbers, setting, PLAN, seed)
    means, _ = tables(done)
    keep = ("policy", "strategy", "budget", "metric", "mean", "low", "high", "vs_random_difference", "vs_random_p")
    rows = [{name: row[name] for name in keep} for row in means if row["metric"] in SHOWN]
    write_table(path, rows, digits=4)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed table instead of writing it")
    parser.add_argument("--build", type=Path, help="numbers.npz of the sentiment task: make the small pool from it")
    options = parser.parse_args()
    if options.build:
        build(options.build)
    path = TABLE.with_suffix(".new.csv") if options.check else TABLE
    make(path)
    text = path.read_text(encoding="utf-8")
    print(text, end="")
    if options.check:
        path.unlink()
        if text != TABLE.read_text(encoding="utf-8"):
            raise UserError(f"the table differs from the committed {TABLE}")


if __name__ == "__main__":
    main()
