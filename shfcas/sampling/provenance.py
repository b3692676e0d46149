"""Facts about the generator of a table's answers."""

from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.sampling.protocol import generator_label


def generation_summary(table: CandidateTable) -> dict[str, Any]:
    """Compares a generator with its rescoring, from a table's diagnostic columns.

    Returns:
        `tokens`: `drawn`, or `retokenised` if only text was known. `retokenised_otherwise`: number of answers whose
        text gives different tokens when tokenised again. `logprob_difference`: mean absolute difference of an
        answer's log-probability. Unknown values are omitted.
    """
    facts: dict[str, Any] = {"tokens": "drawn" if "same_tokens" in table else "retokenised"}
    if "same_tokens" in table:
        facts["retokenised_otherwise"] = sum(not same for row in table.column("same_tokens") for same in row)
    if "engine_logprobs" in table:
        facts["logprob_difference"] = (table.values("engine_logprobs") - table.values("logprobs")).abs().mean().item()
    return facts


def describe_generation(table: CandidateTable) -> str:
    """Returns the summary in words, from a table's metadata; empty if transformers sampled the answers."""
    facts = table.metadata.get("generation")
    if facts is None:
        return ""
    answers = sum(map(len, table.column("completions")))
    parts = [f"{generator_label(table.metadata['generator'])} sampled {answers} answers, transformers scored them"]
    if "logprob_difference" in facts:
        parts.append(f"their log-probabilities differ by {facts['logprob_difference']:.3g} per answer on average")
    if "retokenised_otherwise" in facts:
        parts.append(f"{facts['retokenised_otherwise']} have different tokens when tokenised again")
    else:
        parts.append("their tokens come from tokenising the text")
    return "; ".join(parts)
