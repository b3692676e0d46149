"""Accuracy against labels on the demo's own pool: frozen heads, many splits, seconds.

Each split divides the prompts into some to ask about and some to measure on. Arms without labels are measured once per
split, the others at each budget.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shfcas.compare import AnswerSet, Bench, HeadFit, RefineHead, judge
from shfcas.compare.cells import Refine
from shfcas.compare.frozen import FrozenModel
from shfcas.compare.opinion import RefineOpinion
from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import Preference
from shfcas.evaluation.statistics import t_interval
from shfcas.selection import SelectionConfig, select
from shfcas.utils.errors import NothingSelected
from shfcas.utils.seeds import derive_seed

SPLITS, ASKED_ABOUT = 20, 2 / 3
BUDGETS = (4, 8, 16, 32)
L2, LABEL_WEIGHT = 10.0, 3.0
LABEL_FREE = {
    "nothing": "reward model as it is",
    "equal_trust": "second opinion, equal trust",
    "policy_alone": "second opinion, policy alone",
}
REFINED = {"pairs": "labels as pairs", "arbiter": "labels as arbiters"}
STRATEGIES = {"random": "random", "shf_cas": "SHF-CAS"}


class Pool:
    """Answers of the demo with gold rewards and frozen features.

    Args:
        table: scored answers.
        gold: gold rewards, one list per prompt.
        model: the proxy and its backbone, frozen.
        preferences: the proxy's original preferences.
    """

    def __init__(
        self,
        table: CandidateTable,
        gold: Sequence[Sequence[float]],
        model: FrozenModel,
        preferences: Sequence[Preference],
    ) -> None:
        self.rows, self.gold, self.head = table.rows(), gold, model.head.weight
        self.score = table.metadata["policy_score"]
        prompts = [row["prompt"] for row in self.rows for _ in row["completions"]]
        texts = [text for row in self.rows for text in row["completions"]]
        self.features = model.features(prompts, texts).astype(np.float64)
        self.earlier, _ = model.differences(preferences)

    def part(self, positions: np.ndarray) -> AnswerSet:
        """Returns the answers to the prompts at these positions."""
        ends = np.cumsum([0, *(len(row["completions"]) for row in self.rows)])
        at = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in positions])
        rows, gold = [self.rows[i] for i in positions], [self.gold[i] for i in positions]
        return AnswerSet.from_rows(rows, gold, self.features[at], self.score)


def accuracy_against_labels(
    pool: Pool, blind: Sequence[str], selection: SelectionConfig, seed: int
) -> list[dict[str, Any]]:
    """Measures the held-out pair accuracy of each arm.

    Args:
        pool: the answers.
        blind: topics on which the proxy's annotators were wrong.
        selection: thresholds of SHF-CAS.
        seed: seed of the splits.

    Returns:
        Rows with `arm`, `strategy` (None without labels), `refined` (None without labels), `budget`, and `mean`, `low`,
        `high` of the accuracy: an interval of Student's t over the splits. `vs_random` is the same for the paired
        difference to random labels that are used in the same way.
    """
    found: dict[tuple[str | None, str, int], list[float]] = {}
    for number in range(SPLITS):
        for key, value in _one_split(pool, blind, selection, derive_seed(seed, "split", number)).items():
            found.setdefault(key, []).append(value)
    rows = []
    for (strategy, arm, budget), values in found.items():
        row: dict[str, Any] = {"strategy": strategy, "arm": arm, "budget": budget, **t_interval(values)}
        if strategy == "shf_cas":
            random = found["random", arm, budget]
            row["vs_random"] = t_interval([a - b for a, b in zip(values, random, strict=True)])
        rows.append(row)
    return rows


def _one_split(
    pool: Pool, blind: Sequence[str], selection: SelectionConfig, seed: int
) -> dict[tuple[str | None, str, int], float]:
    order = np.random.default_rng(seed).permutation(len(pool.rows))
    count = round(ASKED_ABOUT * len(order))
    asked, held_out = pool.part(np.sort(order[:count])), pool.part(np.sort(order[count:]))
    assert asked.features is not None and held_out.features is not None
    features = held_out.features
    fit = HeadFit(asked.features, pool.earlier, centre=pool.head, l2=L2)

    def accuracy(rewards: np.ndarray) -> float:
        return float(np.nanmean(held_out.pair_accuracy(rewards)))

    def opinion(trust: tuple[float, float], arbitrate: bool) -> RefineOpinion:
        options: dict[str, Any] = {"arbitrate": arbitrate, "trust": trust, "group_by": "topic"}
        return RefineOpinion(asked, features, fit, label_weight=LABEL_WEIGHT, **options)

    equal = (0.5, 0.5)
    found: dict[tuple[str | None, str, int], float] = {
        (None, "nothing", 0): accuracy(held_out.rewards),
        (None, "equal_trust", 0): accuracy(opinion(equal, False)([], 0)),
        (None, "policy_alone", 0): accuracy(opinion((0.0, 1.0), False)([], 0)),
    }
    refined: dict[str, Refine] = {
        "pairs": RefineHead(asked.features, features, fit, LABEL_WEIGHT),
        "arbiter": opinion(equal, True),
    }
    bench = Bench(asked, held_out, refined["pairs"], "topic", blind, pool_share=1.0)
    for strategy in STRATEGIES:
        for budget in BUDGETS:
            labels = judge(bench, _selected(asked, selection, strategy, budget, seed))
            for arm, refine in refined.items():
                found[strategy, arm, budget] = accuracy(refine(labels, 0))
    return found


def _selected(asked: AnswerSet, selection: SelectionConfig, strategy: str, budget: int, seed: int) -> list[Any]:
    try:
        return select(asked.rows, replace(selection, strategy=strategy, budget=budget), seed)
    except NothingSelected:
        return []
