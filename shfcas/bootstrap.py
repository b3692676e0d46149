"""Data to start from when there is none: the policy's own samples, judged by a demonstrator and by annotators."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from shfcas.candidates import CandidateTable
from shfcas.config import option
from shfcas.errors import UserError
from shfcas.preferences import Preference
from shfcas.sampling import SamplingConfig
from shfcas.scoring import load_scorer, score_rows
from shfcas.selection import threshold


@dataclass
class BootstrapSettings:
    """How demonstrations and original preferences are made from samples of the raw policy."""

    prompts: str = option("", "prompts that are used for nothing else: a file, or module:function")
    demonstrator: str = option("", "the scorer whose favourite answers become demonstrations")
    annotator: str = option("", "the scorer whose ranking becomes the original preferences")
    demonstrations_per_prompt: int = option(2, "best answers of each prompt that become demonstrations")
    demonstration_threshold: str = option(
        "q0.7", "a demonstration scores at least this; a number, or a quantile over all answers"
    )
    pairs_per_prompt: int = option(8, "preference pairs of each prompt, the clearest first")
    sampling: SamplingConfig = option(SamplingConfig, "samples of the raw policy")


class Bootstrap(NamedTuple):
    """Demonstrations (`prompt`, `completion`) and preferences."""

    demonstrations: list[dict[str, Any]]
    preferences: list[Preference]


def bootstrap(candidates: CandidateTable, settings: BootstrapSettings) -> Bootstrap:
    """Turns sampled answers into demonstrations and preferences."""
    rows = candidates.rows()
    best = score_rows(load_scorer(settings.demonstrator), rows)
    judged = score_rows(load_scorer(settings.annotator), rows)
    bound = threshold(settings.demonstration_threshold, np.concatenate(best))
    demonstrations, preferences = [], []
    for row, liked, scores in zip(rows, best, judged, strict=True):
        for i in np.argsort(-np.array(liked), kind="stable")[: settings.demonstrations_per_prompt]:
            if liked[i] >= bound and row["completions"][i]:
                demonstrations.append({"prompt": row["prompt"], "completion": row["completions"][i]})
        pairs = sorted(combinations(range(len(scores)), 2), key=lambda p: -abs(scores[p[0]] - scores[p[1]]))
        for i, j in pairs[: settings.pairs_per_prompt]:
            if scores[i] != scores[j]:
                chosen, rejected = (i, j) if scores[i] > scores[j] else (j, i)
                preferences.append(
                    Preference(
                        prompt=row["prompt"],
                        chosen=row["completions"][chosen],
                        rejected=row["completions"][rejected],
                        prompt_id=row["prompt_id"],
                        chosen_index=chosen,
                        rejected_index=rejected,
                        annotator=settings.annotator,
                    )
                )
    if not demonstrations or not preferences:
        raise UserError("bootstrap: the annotator and the demonstrator rate all answers alike; sample more answers")
    return Bootstrap(demonstrations, preferences)
