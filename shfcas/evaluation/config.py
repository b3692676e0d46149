"""Configuration of the evaluation on held-out prompts."""

from dataclasses import dataclass

from shfcas.sampling.config import SamplingConfig
from shfcas.utils.config import option


@dataclass
class EvaluationConfig:
    """How policies are compared on held-out prompts."""

    sampling: SamplingConfig = option(
        lambda: SamplingConfig(temperature=1.0),
        "answers for evaluation; KL needs temperature 1, top_p 1, top_k 0",
        common=True,
    )
    group_by: str | None = option(None, "also report by the values of this prompt column", common=True)
