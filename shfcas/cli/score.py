"""Score answers with a reward model and add the conflict columns: PACS, Kendall distance, tau-b."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shfcas.candidates import read_candidates, write_candidates
from shfcas.config import option
from shfcas.conflicts import POLICY_SCORES, add_conflicts
from shfcas.models import provenance
from shfcas.scoring import add_rewards, load_scorer


@dataclass
class Config:
    """`shfcas score`."""

    input: str = option("candidates.parquet", "candidate table")
    output: str = option("conflicts.parquet", "the table with rewards and conflicts")
    reward_model: str | None = option(None, "a model, or module:function (none: the table has rewards already)")
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    policy_score: str = option("logprob", "what rewards are compared with", POLICY_SCORES)


def run(config: Config) -> dict[str, Any]:
    """Scores a table and summarises the conflicts."""
    table = read_candidates(config.input)
    if config.reward_model:
        scorer = load_scorer(config.reward_model, config.cost_model)
        table = add_rewards(table, scorer).with_metadata(
            reward_model=config.reward_model, **provenance(reward_model=config.reward_model)
        )
    table = add_conflicts(table, config.policy_score)
    write_candidates(config.output, table)
    distance = np.array(table.column("kendall_distance"))
    return {
        "prompts": len(table),
        "degenerate": sum(table.column("degenerate")),
        "nan": int(np.isnan(distance).sum()),
        "kendall_distance": float(np.nanmean(distance)),
        "mean_abs_pacs": float(np.nanmean(table.column("mean_abs_pacs"))),
        "output": config.output,
    }
