"""Run the experiments and write tables to experiments/results/: `python -m experiments.grid`.

Each experiment is a list of settings, strategies and budgets. Each setting is run for 40 seeds. Finished cells are kept
in `runs/experiments/cells/`. After a kill, the same command continues. With changed code or numbers, it starts over.
"""

import argparse
import csv
import json
import logging
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.arms import BASE, INFORMED, PARTS, STRATEGIES, TUNED, Setting, experiment
from experiments.numbers import EXAMPLES, Numbers
from shfcas.compare import Key, curves, paired_tests
from shfcas.compare.cells import NONE
from shfcas.utils.config import fingerprint
from shfcas.utils.files import content_hash, read_json, write_json
from shfcas.utils.progress import progress

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results"
SEEDS = 40
# Small enough that every strategy finds nearly as many: prompts above the median have no more opposed pairs.
BUDGETS = {"sentiment": (20, 40, 80), "safety": (20, 40, 80), "helpfulness": (6, 12, 24)}
MIDDLE = {"sentiment": (40,), "safety": (40,), "helpfulness": (24,)}
ROUNDS = {"sentiment": (60,), "safety": (60,)}
CONFLICT = ("random", "shf_cas", "kendall", "pacs", "mean_pacs")
FEW = ("random", "shf_cas", "pacs")
COMMITTEE = {"reward_variance", "bald"}  # strategies that need a committee
DEFAULTS = {
    "sentiment": Setting("sentiment", "inverted"),
    "safety": Setting("safety", "missing"),
    "helpfulness": Setting("helpfulness", "length_noise", 0.5),
}
TESTED = ("pair_accuracy", "pair_accuracy|(blind spot)", "best_of_n_gold")
SHOWN = (
    *TESTED,
    "pair_accuracy|(elsewhere)",
    "best_of_n_words",
    "errors_found",
    "blind_share",
    "comparisons",
    "labels",
)


Done = dict[tuple[Setting, int], dict[str, Any]]  # facts and cells by setting and seed


@dataclass(frozen=True)
class Plan:
    """One table: settings x strategies x budgets x seeds, and the metrics of the cells that are shown."""

    settings: tuple[Setting, ...]
    strategies: Sequence[str] = FEW
    budgets: Mapping[str, Sequence[int]] = field(default_factory=lambda: MIDDLE)
    shown: Sequence[str] = SHOWN


def each(tasks: Sequence[str] = tuple(DEFAULTS), **changes: Sequence[Any]) -> Iterator[Setting]:
    """Yield the tasks' settings with each value of one field."""
    ((name, values),) = changes.items()
    return (replace(DEFAULTS[task], **{name: value}) for task in tasks for value in values)


SAMPLED = ("sentiment", "safety")
INFORMEDNESS = tuple(f"{INFORMED}{value}" for value in (0.0, 0.2, 0.4, 0.6, 0.8))
LEADING = ("logprob_ratio", "mean_logprob", f"{INFORMED}0.4")
KINDS = (("none", 1.0), ("inverted", 1.0), ("missing", 1.0), ("noise", 0.3), ("length", 0.5))
PLANS = {
    "main": Plan(tuple(DEFAULTS.values()), STRATEGIES, BUDGETS),
    "main_informed": Plan(tuple(each(policy=[f"{INFORMED}0.4"])), STRATEGIES, BUDGETS),
    "informedness": Plan(tuple(each(policy=INFORMEDNESS)), CONFLICT),
    "policy_score": Plan(
        (*each(SAMPLED, policy=[BASE]), *each(policy=["logprob", "mean_logprob", "logprob_ratio"])), CONFLICT
    ),
    "examples": Plan(
        tuple(
            replace(DEFAULTS[task], policy=policy)
            for task in SAMPLED
            for policy in ("logprob_ratio", *(f"{TUNED}{count}" for count in EXAMPLES[task]))
        ),
        CONFLICT,
    ),
    "pairing": Plan(
        tuple(each(SAMPLED, policy=[f"{INFORMED}0.0", "logprob_ratio", f"{INFORMED}0.4"])),
        ("random", "shf_cas", "shf_cas/random", "shf_cas/adjacent"),
    ),
    "answers": Plan(tuple(each(SAMPLED, answers=[4, 8, 16]))),
    "temperature": Plan(tuple(each(SAMPLED, temperature=["low", "mixed", "high"]))),
    "bias": Plan(
        tuple(
            replace(DEFAULTS[task], bias=bias, strength=strength, policy=policy)
            for task in SAMPLED
            for bias, strength in KINDS
            for policy in ("logprob_ratio",)
        )
    ),
    "strength": Plan(
        tuple(
            replace(DEFAULTS["sentiment"], strength=strength, policy=policy)
            for strength in (0.25, 0.5, 1.0)
            for policy in ("logprob_ratio", f"{INFORMED}0.4")
        )
    ),
    "rounds": Plan(
        tuple(
            replace(DEFAULTS[task], rounds=rounds, policy=policy)
            for task in SAMPLED
            for rounds in (1, 3)
            for policy in ("logprob_ratio", f"{INFORMED}0.4")
        ),
        budgets=ROUNDS,
    ),
    "later": Plan(
        tuple(
            replace(DEFAULTS[task], policy=policy, prompts=prompts)
            for task in SAMPLED
            for policy in LEADING
            for prompts in ("first", "later")
        ),
        ("random", "shf_cas"),
        {task: BUDGETS[task][:2] for task in SAMPLED},  # fewer prompts have fewer pairs
    ),
    "prompts": Plan(
        tuple(
            replace(DEFAULTS[task], policy=policy, left_out=left_out)
            for task in SAMPLED
            for policy in LEADING
            for left_out in range(-1, PARTS)
        ),
        ("random", "shf_cas"),
        BUDGETS,
        ("pair_accuracy",),
    ),
}


def cells_of(plan: Plan, task: str) -> list[tuple[str, int]]:
    """Return strategies and budgets, the arm without labels first."""
    return [(NONE, 0), *((name, budget) for budget in plan.budgets[task] for name in plan.strategies)]


def run_setting(numbers: Numbers, setting: Setting, plan: Plan, seed: int) -> dict[str, Any]:
    """Run all cells of one setting and seed."""
    made = experiment(numbers, setting, seed, bool(COMMITTEE & {*plan.strategies}))
    cells = cells_of(plan, setting.task)
    found = [{"strategy": name, "budget": b, **made.run(name, b, setting.rounds)} for name, b in cells]
    return {"facts": made.facts, "cells": found}


def run_plan(name: str, plan: Plan, tasks: dict[str, Numbers], seeds: int, record: Path) -> Done:
    """Run the missing cells of one experiment; return all cells by setting and seed."""
    done: Done = {}
    for entry in finished_entries(record):
        setting = Setting(**entry["setting"])
        cells = [(cell["strategy"], cell["budget"]) for cell in entry["result"]["cells"]]
        if cells == cells_of(plan, setting.task):  # otherwise they belong to another plan
            done[setting, entry["seed"]] = entry["result"]
    todo = [(s, seed) for s in plan.settings if s.task in tasks for seed in range(seeds)]
    with record.open("a", encoding="utf-8") as file:
        for setting, seed in progress(todo, name):
            if (setting, seed) not in done:
                result = done[setting, seed] = run_setting(tasks[setting.task], setting, plan, seed)
                file.write(json.dumps({"setting": asdict(setting), "seed": seed, "result": result}) + "\n")
                file.flush()
    return {at: done[at] for at in todo}


def finished_entries(record: Path) -> list[dict[str, Any]]:
    """Return the finished entries of a record; a kill may have left half a line, which is cut off."""
    record.parent.mkdir(parents=True, exist_ok=True)
    text = record.read_text(encoding="utf-8") if record.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        record.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def tables(done: Done, shown: Sequence[str] = SHOWN) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return means and paired differences from random per setting, strategy, budget and metric; and the facts."""
    by_setting: dict[Setting, list[tuple[int, Any]]] = {}
    for (setting, seed), result in done.items():
        by_setting.setdefault(setting, []).append((seed, result))
    means, known = [], []
    for made, results in by_setting.items():
        setting = asdict(made)
        rows = [
            {"strategy": c["strategy"], "budget": c["budget"], "seed": seed, "metric": m, "group": "", "value": c[m]}
            for seed, result in results
            for c in result["cells"]
            for m in shown
            if m in c and c[m] is not None
        ]
        for metric in shown:
            key = Key(metric)
            tests = {}
            if metric in TESTED:
                tests = {(t["strategy"], t["budget"]): t for t in paired_tests(rows, key, "random")}
            for row in curves(rows, key):
                test = tests.get((row["strategy"], row["budget"]), {})
                means.append({**setting, **row, **{f"vs_random_{k}": test.get(k, "") for k in TEST}})
        facts = [
            {"strategy": "", "budget": 0, "seed": seed, "metric": name, "group": "", "value": value}
            for seed, result in results
            for name, value in result["facts"].items()
        ]
        for name in dict.fromkeys(row["metric"] for row in facts):
            known += [{**setting, **row} for row in curves(facts, Key(name))]
    for row in means + known:
        del row["group"]
    for row in known:
        del row["strategy"], row["budget"]
    return means, known


TEST = ("difference", "low", "high", "better", "worse", "p", "p_holm")


def write_table(path: Path, rows: Sequence[dict[str, Any]], digits: int = 6) -> None:
    """Write rows as CSV, with numbers rounded to `digits` significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.{digits}g}" if isinstance(v, float) else v for k, v in row.items()})


def commit() -> str:
    """Return the commit of the code, and whether anything was changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no", "*.py", "../shfcas"], capture_output=True, text=True
    ).stdout
    return head + (" with changes" if changed.strip() else "")


def code() -> str:
    """Return a hash of all code that can affect a cell."""
    here = Path(__file__).parents[1]
    files = sorted(path for folder in ("experiments", "shfcas") for path in (here / folder).rglob("*.py"))
    return fingerprint({str(path.relative_to(here)): content_hash(path) for path in files})[:12]


def machine() -> str:
    """Return the processor and its number of cores."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return f"{name[1] if name else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", type=Path, default=Path("runs/experiments/pools"))
    parser.add_argument("--cells", type=Path, default=Path("runs/experiments/cells"))
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULTS), choices=list(DEFAULTS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    paths = {task: options.pools / task / "numbers.npz" for task in options.tasks}
    tasks = {task: Numbers.load(path) for task, path in paths.items()}
    hashes = {task: content_hash(path)[:12] for task, path in paths.items()}
    for name in options.plans:
        done: Done = {}
        for task, numbers in tasks.items():
            record = options.cells / f"{task}-{hashes[task]}-{code()}" / f"{name}.jsonl"
            done |= run_plan(name, PLANS[name], {task: numbers}, options.seeds, record)
        means, known = tables(done, PLANS[name].shown)
        write_table(options.output / f"{name}.csv", means)
        write_table(options.output / f"{name}_facts.csv", known)
        about = options.output / "about.json"
        entries = read_json(about) if about.exists() else {}
        entries[name] = {
            "command": f"python -m experiments.grid --plans {name}",
            "commit": commit(),
            "machine": machine(),
            "pools": hashes,
            "seeds": options.seeds,
        }
        write_json(about, dict(sorted(entries.items())))
        logger.info("%s: %d rows", name, len(means))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
