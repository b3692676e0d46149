"""Configuration of the evaluation on held-out prompts."""

from dataclasses import dataclass

from shfcas.sampling.config import SamplingConfig
from shfcas.utils.config import Options, option

JUDGES = ("gold", "human", "judge")


@dataclass
class EvaluationConfig(Options):
    """Evaluation of policies on held-out prompts."""

    sampling: SamplingConfig = option(
        lambda: SamplingConfig(temperature=1.0),
        "answers to held-out prompts; the KL needs temperature 1, top_p 1 and top_k 0",
        common=True,
    )
    conflicts: bool = option(
        True,
        "measure conflict on the held-out answers, too; with policy_score contrast, the policy is asked about them",
    )
    group_by: str | None = option(None, "prompt column to report results by, too (none: no groups)", common=True)
    judge: str = option(
        "gold",
        "who compares the policy with the base: the gold reward if there is one; or, in blind pairs, people (human) or "
        "a language model (judge)",
        JUDGES,
        common=True,
    )
    num_comparisons: int = option(
        100, "judge human or judge: maximum pairs of answers to compare for each policy, over all prompts", ge=1
    )
    judge_rounds: str = option(
        "last", "judge human or judge: compare the policy of the last round, or of each round", ("last", "each")
    )
