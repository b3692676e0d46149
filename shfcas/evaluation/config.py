"""Configuration of the evaluation on held-out prompts."""

from dataclasses import dataclass

from shfcas.sampling.config import SamplingConfig
from shfcas.utils.config import Options, option


@dataclass
class EvaluationConfig(Options):
    """Evaluation of policies on held-out prompts."""

    sampling: SamplingConfig = option(
        lambda: SamplingConfig(temperature=1.0),
        "answers to held-out prompts; the KL needs temperature 1, top_p 1 and top_k 0",
        common=True,
    )
    group_by: str | None = option(None, "prompt column to report results by, too (none: no groups)", common=True)
