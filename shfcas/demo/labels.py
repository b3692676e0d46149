"""Accuracy against labels on the demo's own pool: heads on frozen features, many splits, seconds.

Each split divides the prompts into some to ask about and some to measure on. In all arms the same head learns soft
labels of the asked answers. The arms differ in who gives them: the reward model alone, the policy alone, both with
equal trust, or both with the trust that the labels tell. So `labels as pairs` are those on top of the reward model's
own opinion, and `labels as arbiters` decide between it and the policy's.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shfcas.compare import AnswerSet, Bench, HeadFit, judge
from shfcas.compare.crossed import Crossed
from shfcas.compare.opinion import RefineOpinion
from shfcas.data.candidates import CandidateTable
from shfcas.data.messages import plain_text
from shfcas.evaluation.statistics import t_interval
from shfcas.rewards.prompt_groups import text_embeddings
from shfcas.selection import Comparison, SelectionConfig, select
from shfcas.utils.errors import NothingSelected
from shfcas.utils.seeds import derive_seed

SPLITS, ASKED_ABOUT = 20, 2 / 3
BUDGETS = (4, 8, 16, 32)
L2, LABEL_WEIGHT = 1000.0, 3.0
TRUST = {"reward_alone": (1.0, 0.0), "equal_trust": (0.5, 0.5), "policy_alone": (0.0, 1.0)}
LABEL_FREE = {
    "reward_alone": "reward model alone",
    "equal_trust": "second opinion, equal trust",
    "policy_alone": "policy alone",
}
REFINED = {"pairs": "labels as pairs", "arbiter": "labels as arbiters"}
STRATEGIES = {"random": "random", "shf_cas": "SHF-CAS"}
NONE = "none"  # the strategy of arms without labels
Key = tuple[str, str, int]  # strategy, arm, budget


class Pool:
    """Answers of the demo with gold rewards and frozen features.

    Args:
        table: scored answers.
        gold: gold rewards, one list per prompt.
        encoder: name of a model whose encoder embeds prompts and answers.
    """

    def __init__(self, table: CandidateTable, gold: Sequence[Sequence[float]], encoder: str) -> None:
        self.rows, self.gold, self.score = table.rows(), gold, table.metadata["policy_score"]
        prompts = [plain_text(row["prompt"]) for row in self.rows for _ in row["completions"]]
        answers = [text for row in self.rows for text in row["completions"]]
        texts = sorted({*prompts, *answers})
        place = {text: position for position, text in enumerate(texts)}
        vectors = text_embeddings(encoder, texts)
        of_prompts, of_answers = (vectors[[place[text] for text in part]] for part in (prompts, answers))
        self.features = Crossed(of_prompts, of_answers)(of_prompts, of_answers).astype(np.float64)

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
        Rows with `strategy` (`none` without labels), `arm` (who gives the soft labels, or how labels are used),
        `budget`, and `mean`, `low`, `high` of the accuracy: an interval of Student's t over the splits. `vs_random` is
        the same for the paired difference to random labels that are used in the same way.
    """
    found: dict[Key, list[float]] = {}
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


def _one_split(pool: Pool, blind: Sequence[str], selection: SelectionConfig, seed: int) -> dict[Key, float]:
    order = np.random.default_rng(seed).permutation(len(pool.rows))
    count = round(ASKED_ABOUT * len(order))
    asked, held_out = pool.part(np.sort(order[:count])), pool.part(np.sort(order[count:]))
    assert asked.features is not None and held_out.features is not None
    features = held_out.features
    fit = HeadFit(asked.features, asked.features[:0], l2=L2)

    def opinion(trust: str, arbitrate: bool) -> RefineOpinion:
        return RefineOpinion(asked, features, fit, arbitrate, TRUST[trust], group_by="topic", label_weight=LABEL_WEIGHT)

    def accuracy(refine: RefineOpinion, labels: Sequence[Any] = ()) -> float:
        return float(np.nanmean(held_out.pair_accuracy(refine(labels, 0))))

    found: dict[Key, float] = {(NONE, arm, 0): accuracy(opinion(arm, False)) for arm in LABEL_FREE}
    refined = {"pairs": opinion("reward_alone", False), "arbiter": opinion("equal_trust", True)}
    bench = Bench(asked, held_out, refined["pairs"], "topic", blind, pool_share=1.0)
    for strategy in STRATEGIES:
        for budget in BUDGETS:
            labels = judge(bench, _selected(asked, replace(selection, strategy=strategy, budget=budget), seed))
            for arm, refine in refined.items():
                found[strategy, arm, budget] = accuracy(refine, labels)
    return found


def _selected(asked: AnswerSet, selection: SelectionConfig, seed: int) -> list[Comparison]:
    try:
        return select(asked.rows, selection, seed)
    except NothingSelected:
        return []
