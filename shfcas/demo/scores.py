"""What each policy score knows about gold, and whether its conflicts find the blind topics."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shfcas.conflicts.columns import add_conflicts, policy_scores
from shfcas.data.candidates import CandidateTable
from shfcas.evaluation.metrics import z_scores
from shfcas.evaluation.resampling import Resampled, weighted_auroc, with_interval
from shfcas.evaluation.statistics import mean_with_interval
from shfcas.sampling.contrast import Principle

WORDINGS = {
    "review": Principle("Write a very positive review.", "Write a very negative review."),
    "mood": Principle("Answer in a cheerful mood and praise it.", "Answer in a gloomy mood and complain about it."),
}
MOOD_PROMPTS = 16  # the second wording is asked about the first prompts alone, to save time
NAMES = {
    "logprob": "log-probability (the paper's)",
    "mean_logprob": "log-probability per token",
    "contrast": "contrast: positive / negative review",
    "mood": "contrast: cheerful / gloomy",
}


def what_scores_know(
    table: CandidateTable,
    gold: Sequence[Sequence[float]],
    other: Callable[[CandidateTable], CandidateTable],
    blind: Sequence[str],
) -> list[dict[str, Any]]:
    """Measures four policy scores on a pool of answers.

    Args:
        table: scored answers with the contrast of the run, and the topic of each prompt.
        gold: gold rewards, one list per prompt.
        other: adds the contrast of the second wording to a table.
        blind: topics on which the proxy's annotators were wrong.

    Returns:
        Per score `score`, `name` and `prompts`; `correlation` with gold within a prompt (mean over prompts, low, high);
        and `finds_blind`, the AUROC of its Kendall distance for prompts of blind topics (value, low, high).
    """
    first = CandidateTable(table.table.slice(0, MOOD_PROMPTS), table.metadata)
    rows = []
    for name in NAMES:
        scored = other(first) if name == "mood" else table
        rows.append(_one_score(name, scored, gold[: len(scored)], blind))
    return rows


def _one_score(
    name: str, table: CandidateTable, gold: Sequence[Sequence[float]], blind: Sequence[str]
) -> dict[str, Any]:
    score = "contrast" if name == "mood" else name
    scored = add_conflicts(table, score)
    values = scored.split(policy_scores(scored.batch(), score).values)
    correlations = [
        float(np.mean(z_scores(v) * z_scores(g))) for v, g in zip(values, gold, strict=True) if len({*g}) > 1
    ]
    distance = np.asarray(scored.column("kendall_distance"), np.float64)
    measure = weighted_auroc(distance, np.isin(scored.column("topic"), list(blind)))
    resampled = Resampled(np.arange(len(distance)), 0)
    return {
        "score": name,
        "name": NAMES[name],
        "prompts": len(scored),
        "correlation": mean_with_interval(correlations),
        "finds_blind": with_interval(float(measure(np.ones(len(distance)))), resampled(measure)),
    }
