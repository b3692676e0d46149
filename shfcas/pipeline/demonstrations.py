"""Demonstrations by the policy itself: its best answers to prompts that are used for nothing else."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shfcas.data.candidates import CandidateTable
from shfcas.data.chat import following_text
from shfcas.rewards.scorers import load_scorer
from shfcas.rewards.table import score_rows
from shfcas.sampling.config import SamplingConfig
from shfcas.selection.thresholds import parse_threshold, threshold
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UserError


@dataclass
class BootstrapConfig(Options):
    """Demonstrations from the best samples of the policy before training."""

    prompts: str = option("", "prompts that are used for nothing else: a file, or module:function")
    demonstrator: str = option("", "reward that chooses the demonstrations: a model, or module:function")
    per_prompt: int = option(2, "maximum demonstrations per prompt", ge=1)
    threshold: str | float = option(
        "q0.7", "minimum reward of a demonstration: a number, or a quantile of all answers such as q0.7"
    )
    sampling: SamplingConfig = option(SamplingConfig, "samples of the policy before training")

    def check(self) -> None:
        """Checks that the threshold is a number or a quantile."""
        parse_threshold(self.threshold)


def _demonstration(row: dict[str, Any], index: int) -> dict[str, Any]:
    text = row["completions"][index]
    if row.get("completion_ids"):
        return {"prompt": row["prompt"], "completion": text, "completion_ids": row["completion_ids"][index]}
    return {"prompt": row["prompt"], "completion": following_text(row["prompt"], text)}


def demonstrations(candidates: CandidateTable, settings: BootstrapConfig) -> list[dict[str, Any]]:
    """Returns the best answers of each prompt, as rows with `prompt`, `completion` and `completion_ids`.

    Raises:
        UserError: no answer passes the threshold.
    """
    rows = candidates.rows()
    scores = score_rows(load_scorer(settings.demonstrator), rows)
    bound = threshold(settings.threshold, np.concatenate(scores))
    chosen = [
        _demonstration(row, i)
        for row, liked in zip(rows, scores, strict=True)
        for i in np.argsort(-np.array(liked), kind="stable")[: settings.per_prompt]
        if liked[i] >= bound and row["completions"][i]
    ]
    if not chosen:
        raise UserError(f"bootstrap: no answer scores {bound:.3g} or more; lower bootstrap.threshold")
    return chosen
