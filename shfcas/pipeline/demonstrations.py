"""Demonstrations by the policy itself: its best answers to prompts that are used for nothing else."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shfcas.data.candidates import CandidateTable
from shfcas.rewards.scorers import load_scorer
from shfcas.rewards.table import score_rows
from shfcas.sampling.config import SamplingConfig
from shfcas.selection import threshold
from shfcas.utils.config import option
from shfcas.utils.errors import UserError


@dataclass
class BootstrapConfig:
    """How demonstrations are made from samples of the raw policy."""

    prompts: str = option("", "prompts that are used for nothing else: a file, or module:function")
    demonstrator: str = option("", "the scorer whose favourite answers become demonstrations")
    per_prompt: int = option(2, "at most so many demonstrations a prompt")
    threshold: str | float = option(
        "q0.7", "a demonstration scores at least this; a number, or a quantile of all answers"
    )
    sampling: SamplingConfig = option(SamplingConfig, "samples of the raw policy")


def demonstrations(candidates: CandidateTable, settings: BootstrapConfig) -> list[dict[str, Any]]:
    """Returns the best answers of each prompt, as rows with `prompt` and `completion`.

    Raises:
        UserError: no answer passes the threshold.
    """
    rows = candidates.rows()
    scores = score_rows(load_scorer(settings.demonstrator), rows)
    bound = threshold(settings.threshold, np.concatenate(scores))
    chosen = [
        {"prompt": row["prompt"], "completion": row["completions"][i]}
        for row, liked in zip(rows, scores, strict=True)
        for i in np.argsort(-np.array(liked), kind="stable")[: settings.per_prompt]
        if liked[i] >= bound and row["completions"][i]
    ]
    if not chosen:
        raise UserError(f"bootstrap: no answer scores {bound:.3g} or more; lower bootstrap.threshold")
    return chosen
