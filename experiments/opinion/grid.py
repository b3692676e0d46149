"""Run every cell of the plan with heads: `python -m experiments.opinion.grid`.

Each table is a list of settings with arms and budgets; each setting is run for 40 seeds. Finished cells are kept in
`runs/experiments/opinion/cells/`; after a kill, the same command continues. With changed code or numbers it starts
over. Writes a file per table to `experiments/results/opinion/`: means and intervals over seeds. The hypotheses are
tested on the cells, by `experiments.opinion.verdicts`.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments.grid import commit, finished_entries, machine, write_table
from experiments.opinion.bench import (
    CONTRAST,
    INFORMED,
    LABEL_FREE,
    PARTS,
    REFINED,
    STRATEGIES,
    STRENGTH,
    Setting,
    Split,
    experiment,
    split,
)
from experiments.opinion.numbers import DATA, Numbers
from experiments.opinion.pools import ROOT
from experiments.opinion.tasks import TASKS
from shfcas.compare import Label
from shfcas.evaluation.statistics import t_interval
from shfcas.utils.config import fingerprint
from shfcas.utils.files import content_hash, write_json
from shfcas.utils.progress import progress

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parents[1] / "results" / "opinion"
CHUNK = 8
SEEDS = 40  # of most tables; fewer where everything is repeated for parts of the prompts, or for many settings
# 32 serves to compare 16 labels with twice as many. Small pools have fewer conflicting pairs.
BUDGETS = {"sentiment": (8, 16, 24, 32, 40, 80), "safety": (8, 16, 24, 32, 40, 80)}
FEW_BUDGETS = (8, 16, 24, 32, 40)
PRIMARY = f"{CONTRAST}0"
CONTRASTS = tuple(f"{CONTRAST}{i}" for i in range(3))
INFORMEDNESS = tuple(f"{INFORMED}{value}" for value in (0.0, 0.2, 0.4, 0.6, 0.8))
SCORES = ("logprob", "mean_logprob", *CONTRASTS, *INFORMEDNESS)

Arm = tuple[str, str, int]  # strategy (empty without labels), how it is used, comparisons


@dataclass(frozen=True)
class Table:
    """Settings, and the arms that each of them runs."""

    settings: tuple[Setting, ...]
    strategies: Sequence[str] = tuple(STRATEGIES)
    refined: Sequence[str] = REFINED
    without: Sequence[str] = LABEL_FREE
    budgets: Sequence[int] | None = None  # None: all of the task
    seeds: int = SEEDS

    def arms(self, task: str) -> list[Arm]:
        """Return the arms of a task, those without labels first."""
        most = BUDGETS.get(task, FEW_BUDGETS)
        budgets = [b for b in most if self.budgets is None or b in self.budgets]
        labelled = [(s, how, b) for b in budgets for s in self.strategies for how in self.refined]
        return [*(("", arm, 0) for arm in self.without), *labelled]


def _each(biases: Sequence[str], scores: Sequence[str], **options: Any) -> tuple[Setting, ...]:
    return tuple(Setting(task, bias, score, **options) for task in TASKS for bias in biases for score in scores)


def over_parts(draw: int) -> Table:
    """Return the table that repeats everything without each part of the prompts, for intervals over prompts."""
    both = ("inverted", "none")
    settings = tuple(
        s for part in range(-1, PARTS) for bias in both for s in _each((bias,), (PRIMARY,), draw=draw, left_out=part)
    )
    return Table(settings, refined=("arbitrate",), budgets=(8, 16, 32, 40, 80), seeds=12)


def scores_over_parts(draw: int) -> Table:
    """Return the same for the log-probability, without labels."""
    settings = tuple(
        s for part in range(-1, PARTS) for s in _each(("inverted",), ("logprob",), draw=draw, left_out=part)
    )
    return Table(settings, strategies=(), without=(), seeds=12)


TABLES = {
    "scores": Table(_each(STRENGTH, SCORES), strategies=(), without=()),
    "labels": Table(_each(("inverted", "none"), ("logprob", PRIMARY))),
    "safety_net": Table(
        _each(STRENGTH, ("logprob", PRIMARY, f"{INFORMED}0.0", f"{INFORMED}0.4")), budgets=(8, 24), seeds=20
    ),
    "wordings": Table(_each(("inverted", "none"), CONTRASTS[1:]), budgets=(24,), refined=("arbitrate",)),
    "prompts": over_parts(0),
    "prompts_scores": scores_over_parts(0),
    # New answers to the same prompts, in the two tasks whose answers the policy samples.
    "replication": over_parts(1),
    "replication_scores": scores_over_parts(1),
}


@cache
def numbers_of(pool: str) -> Numbers | None:
    path = DATA / f"{pool}.npz"
    return Numbers.load(path) if path.exists() else None


@lru_cache(maxsize=1)
def split_of(pool: str, task: str, bias: str, seed: int) -> Split:
    numbers = numbers_of(pool)
    assert numbers is not None
    return split(numbers, task, bias, seed, numbers_of(f"{task}-proxy-0"))


def run_setting(work: tuple[Setting, int, Sequence[Arm]]) -> dict[str, Any]:
    """Run all arms of one setting and seed."""
    setting, seed, arms = work
    numbers = numbers_of(setting.pool)
    assert numbers is not None
    made = experiment(numbers, setting, seed, split_of(setting.pool, setting.task, setting.bias, seed))
    labels: dict[tuple[str, int], list[Label]] = {}
    cells = []
    for strategy, how, budget in arms:
        if not strategy:
            rewards, count = made.without_labels(how), 0
        else:
            if (strategy, budget) not in labels:
                labels[strategy, budget] = made.labels(strategy, budget)
            count = len(labels[strategy, budget])
            rewards = made.refined(labels[strategy, budget], how)
        values = {"labels": float(count), **made.measures(rewards)}
        cells.append({"arm": [strategy, how, budget], **{k: round(v, 5) for k, v in values.items()}})
    facts = {name: round(value, 5) for name, value in made.facts().items()}
    return {"setting": asdict(setting), "seed": seed, "pools": pools_of(setting), "facts": facts, "cells": cells}


@cache
def pools_of(setting: Setting) -> str:
    """Return a hash of the numbers that a setting reads."""
    paths = [DATA / f"{name}.npz" for name in (setting.pool, f"{setting.task}-proxy-0")]
    return fingerprint([content_hash(path) for path in paths if path.exists()])[:12]


def run_table(name: str, table: Table, record: Path, workers: int) -> list[dict[str, Any]]:
    """Run what is missing of one table; return all of it, in a fixed order."""
    todo = [(s, seed) for s in table.settings if (DATA / f"{s.pool}.npz").exists() for seed in range(table.seeds)]
    done = {(Setting(**r["setting"]), r["seed"]): r for r in finished(record)}
    missing = [(s, seed, table.arms(s.task)) for s, seed in todo if (s, seed) not in done]
    missing.sort(key=lambda work: (work[0].pool, work[0].bias, work[1]))  # those that share a proxy, one after another
    with record.open("a", encoding="utf-8") as file, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        results = pool.map(run_setting, missing, chunksize=CHUNK)
        for (setting, seed, _), result in progress(zip(missing, results, strict=True), name, total=len(missing)):
            done[setting, seed] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
    return [done[at] for at in todo]


def finished(record: Path) -> Iterator[dict[str, Any]]:
    """Yield the finished entries about the numbers that are there now."""
    for result in finished_entries(record):
        if result["pools"] == pools_of(Setting(**result["setting"])):
            yield result


def code(*others: Path) -> str:
    """Return a hash of the code that determines a cell, and of further folders."""
    here = Path(__file__).parents[2]
    folders = ("shfcas/compare", "shfcas/rewards", "shfcas/selection", "shfcas/conflicts", "shfcas/evaluation")
    files = [Path(__file__).with_name(name) for name in ("bench.py", "numbers.py")]
    files += [path for folder in (*(here / name for name in folders), *others) for path in sorted(folder.glob("*.py"))]
    return fingerprint({str(path.relative_to(here)): content_hash(path) for path in files})[:12]


def record_of(name: str) -> Path:
    """Return the file with the finished cells of a table."""
    return ROOT / "cells" / f"{name}-{code()}.jsonl"


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per setting, arm and measure: mean and Student's interval over seeds; facts have an empty arm."""
    values: dict[tuple[Any, ...], list[float]] = {}
    for result in found:
        setting = tuple(result["setting"].values())
        for name, value in result["facts"].items():
            values.setdefault((*setting, "", "", 0, name), []).append(value)
        for cell in result["cells"]:
            for name in MEASURES:
                values.setdefault((*setting, *cell["arm"], name), []).append(cell[name])
    names = (*(f.name for f in fields(Setting)), "strategy", "how", "budget", "measure")
    rows = []
    for key, of_seeds in values.items():
        known = [value for value in of_seeds if value == value]  # a split can lack blind held-out prompts
        if known:
            rows.append({**dict(zip(names, key, strict=True)), "seeds": len(known), **t_interval(known)})
    return rows


MEASURES = ("accuracy", "sound", "blind", "best_of_n", "labels")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in options.tables:
        found = run_table(name, TABLES[name], record_of(name), options.workers)
        write_table(RESULTS / f"{name}.csv", summary(found), digits=4)
        about = {"command": f"python -m experiments.opinion.grid --tables {name}", "commit": commit()}
        write_json(RESULTS / f"{name}_about.json", {**about, "machine": machine()})


if __name__ == "__main__":
    main()
