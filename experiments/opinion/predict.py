"""Tell from 50 judged pairs whether labels will help: `python -m experiments.opinion.predict`.

For each setting of the safety net's table and each seed, 50 random pairs of the pool are judged, and two rules say
whether to spend 24 labels on conflicts: `diagnose`, and strategy `auto`. Then the labels are bought and the gain is
measured on held-out prompts. Finished cells are kept in `runs/experiments/opinion/cells/`; after a kill, the same
command continues. Writes `experiments/results/opinion/predict.csv`.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

import numpy as np

from experiments.grid import commit, machine, write_table
from experiments.opinion.bench import NOTHING, Experiment, Setting, experiment
from experiments.opinion.grid import CHUNK, RESULTS, TABLES, code, finished, numbers_of, pools_of, split_of
from experiments.opinion.pools import ROOT
from shfcas.evaluation.diagnose import diagnose, from_preferences
from shfcas.evaluation.statistics import t_interval
from shfcas.feedback.annotation.schema import make_preference
from shfcas.rewards.second_opinion import labelled_pairs, pool_of
from shfcas.selection.auto import next_step
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_json
from shfcas.utils.progress import progress
from shfcas.utils.seeds import derive_seed

JUDGED, BOUGHT = 50, 24
POOL = 2000  # pairs of the pool that `auto` looks at
TABLE = TABLES["safety_net"]
OVER = {NOTHING: "the proxy as it is", "equal_trust": "the second opinion without labels"}
RULES = ("diagnose", "auto", "always", "never")


def run_setting(work: tuple[Setting, int]) -> dict[str, Any]:
    """Predict and measure in one setting with one seed."""
    setting, seed = work
    numbers = numbers_of(setting.pool)
    assert numbers is not None
    made = experiment(numbers, setting, seed, split_of(setting.pool, setting.task, setting.bias, seed))
    bought = made.measures(made.refined(made.labels("shf_cas", BOUGHT), "arbitrate"))["accuracy"]
    gains = {arm: round(bought - made.measures(made.without_labels(arm))["accuracy"], 5) for arm in OVER}
    entry = {"setting": asdict(setting), "seed": seed, "pools": pools_of(setting), "gains": gains}
    return entry | {"spend": predictions(made)}


def predictions(made: Experiment) -> dict[str, bool]:
    """Return whether each rule would spend labels on conflicts, from 50 random judged pairs of the pool."""
    rows, offsets = made.pool.rows, made.pool.offsets
    verdicts = [
        make_preference(
            rows[label.prompt],
            int(label.chosen - offsets[label.prompt]),
            int(label.rejected - offsets[label.prompt]),
            source="gold",
            annotator="",
            round=1,
        )
        for label in made.labels("random", JUDGED)
    ]
    try:
        informative = diagnose(from_preferences(rows, verdicts))["informative"]
    except UserError:  # all judged pairs have equal rewards
        informative = None
    groups = [row["known"] for row in rows]
    pool = pool_of(rows, groups)
    labelled, _ = labelled_pairs(rows, verdicts, groups)
    order = np.random.default_rng(derive_seed("auto", made.seed)).permutation(len(pool.pairs))[:POOL]
    step = next_step(
        labelled,
        np.ones(len(labelled)),
        pool.pairs[order],
        pool.pairs[order],
        batch=BOUGHT,
        left=BOUGHT,
        prompts=[rows[pool.row[at]]["prompt_id"] for at in order],
    )
    return {"diagnose": informative is True, "auto": step.action != "stop", "always": True, "never": False}


def summary(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per gain and rule: how often the rule was right, over all settings and over the clear ones."""
    settings: dict[Setting, list[Mapping[str, Any]]] = {}
    for entry in found:
        settings.setdefault(Setting(**entry["setting"]), []).append(entry)
    rows = []
    for arm in OVER:
        gains = {s: t_interval([entry["gains"][arm] for entry in of]) for s, of in settings.items()}
        clear = [s for s, gain in gains.items() if gain["low"] > 0 or gain["high"] < 0]
        for rule in RULES:
            for name, chosen in (("all", list(settings)), ("clear", clear)):
                right = [
                    np.mean([entry["spend"][rule] == (gains[s]["mean"] > 0) for entry in settings[s]]) for s in chosen
                ]
                spent = [np.mean([entry["spend"][rule] for entry in settings[s]]) for s in chosen]
                rows.append(
                    {
                        "over": arm,
                        "rule": rule,
                        "of": name,
                        "settings": len(chosen),
                        "positive": sum(gains[s]["mean"] > 0 for s in chosen),
                        "spends": float(np.mean(spent)),
                        **t_interval([float(share) for share in right]),
                    }
                )
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    record = ROOT / "cells" / f"predict-{code()}.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    done = {(Setting(**entry["setting"]), entry["seed"]): entry for entry in finished(record)}
    todo = [(setting, seed) for setting in TABLE.settings for seed in range(TABLE.seeds)]
    missing = [work for work in todo if work not in done]
    missing.sort(key=lambda work: (work[0].pool, work[0].bias, work[1]))
    with record.open("a", encoding="utf-8") as file, ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        results = pool.map(run_setting, missing, chunksize=CHUNK)
        for work, entry in progress(zip(missing, results, strict=True), "predictions", total=len(missing)):
            done[work] = entry
            file.write(json.dumps(entry) + "\n")
            file.flush()
    write_table(RESULTS / "predict.csv", summary([done[work] for work in todo]), digits=4)
    about = {"command": "python -m experiments.opinion.predict", "commit": commit(), "machine": machine()}
    write_json(RESULTS / "predict_about.json", about)


if __name__ == "__main__":
    main()
