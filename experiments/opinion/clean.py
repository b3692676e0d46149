"""Explore labels as arbiters of the original pairs, `reward.refine: clean`: `python -m experiments.opinion.clean`.

Labels on conflicts say in which groups the reward model is wrong. The original pairs of these groups are left out, and
the head is fitted again to the others and the labels. Beside it are the labels as pairs and as arbiters, and the proxy
as it is. This was tried after the hypotheses of the plan were tested, on the same tasks: it is an exploration. Writes
`experiments/results/opinion/clean.csv`.
"""

import argparse
import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from experiments.grid import commit, machine, write_table
from experiments.opinion.bench import (
    LABEL_WEIGHT,
    NOTHING,
    PROXY_L2,
    STRENGTH,
    Experiment,
    Setting,
    experiment,
    labelled_pairs,
)
from experiments.opinion.grid import CHUNK, PRIMARY, RESULTS, numbers_of, split_of
from experiments.opinion.numbers import Numbers
from experiments.opinion.tasks import TASKS
from shfcas.compare import HeadFit, Label
from shfcas.evaluation.statistics import t_interval
from shfcas.utils.files import write_json
from shfcas.utils.progress import progress

BUDGETS, SEEDS = (8, 24), 12
SCORES = ("logprob", PRIMARY)
SETTINGS = [Setting(task, bias, score) for task in TASKS for bias in STRENGTH for score in SCORES]
ARMS = ("pairs", "arbitrate", "clean")


def cleaned(made: Experiment, training: Numbers, pairs: np.ndarray, labels: Sequence[Label]) -> dict[str, float]:
    """Return the measures of a head that is fitted again, without the pairs of groups that the labels contradict.

    Args:
        made: the proxy and the pool.
        training: the answers that the proxy learned from.
        pairs: its pairs, see `labelled_pairs`.
        labels: labels about the pool.
    """
    better, worse, prompt = pairs
    trust = made.arbiter.arbiter(labels).reward_trust([str(group) for group in training.known[prompt]])
    kept, wrong = trust >= 0, training.gold[better] < training.gold[worse]
    features = made.pool.features
    assert features is not None and made.held_out.features is not None
    differences = training.features[better] - training.features[worse]
    asked = features[[x.chosen for x in labels]] - features[[x.rejected for x in labels]]
    head = HeadFit(features, differences[kept], l2=PROXY_L2)(asked, LABEL_WEIGHT)
    out = {"left_out": float(1 - kept.mean()), "wrong": float(wrong[~kept].mean()) if (~kept).any() else float("nan")}
    return {**made.measures(head(made.held_out.features)), **out}


def run_setting(work: tuple[Setting, int]) -> list[dict[str, Any]]:
    """Measure every arm in one setting with one seed."""
    setting, seed = work
    numbers, others = numbers_of(setting.pool), numbers_of(f"{setting.task}-proxy-0")
    assert numbers is not None
    drawn = split_of(setting.pool, setting.task, setting.bias, seed)
    made = experiment(numbers, setting, seed, drawn)
    own = np.setdiff1d(np.arange(len(numbers.prompts)), np.concatenate([drawn.pool, drawn.held_out]))
    training = others or numbers.part(own)
    pairs = labelled_pairs(training, setting.bias, drawn.blind, seed)
    before = made.measures(made.held_out.rewards)
    rows = [{"arm": NOTHING, "strategy": "", "budget": 0, **before}]
    for strategy in ("random", "shf_cas"):
        for budget in BUDGETS:
            labels = made.labels(strategy, budget)
            found = {
                "pairs": made.measures(made.refined(labels, "labels")),
                "arbitrate": made.measures(made.refined(labels, "arbitrate")),
                "clean": cleaned(made, training, pairs, labels),
            }
            rows += [{"arm": arm, "strategy": strategy, "budget": budget, **values} for arm, values in found.items()]
    return [{"task": setting.task, "bias": setting.bias, "score": setting.score, "seed": seed, **row} for row in rows]


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per setting, arm and measure: mean and Student's interval over seeds."""
    values: dict[tuple[Any, ...], list[float]] = {}
    names = ("task", "bias", "score", "arm", "strategy", "budget")
    for row in found:
        for measure in ("accuracy", "sound", "blind", "left_out", "wrong"):
            if measure in row and row[measure] == row[measure]:
                values.setdefault((*(row[name] for name in names), measure), []).append(row[measure])
    return [
        {**dict(zip((*names, "measure"), key, strict=True)), "seeds": len(of), **t_interval(of)}
        for key, of in values.items()
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    todo = [(setting, seed) for setting in SETTINGS for seed in range(SEEDS)]
    todo.sort(key=lambda work: (work[0].task, work[0].bias, work[1]))
    found: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for rows in progress(pool.map(run_setting, todo, chunksize=CHUNK), "clean", total=len(todo)):
            found += rows
    write_table(RESULTS / "clean.csv", summary(found), digits=4)
    about = {"command": "python -m experiments.opinion.clean", "commit": commit(), "machine": machine()}
    write_json(RESULTS / "clean_about.json", about)


if __name__ == "__main__":
    main()
