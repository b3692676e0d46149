"""What a table says about the generator that drew its answers."""

from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.sampling.protocol import label


def summary(table: CandidateTable) -> dict[str, Any]:
    """How far a generator and its rescoring lie apart, by a table's diagnostic columns.

    Returns:
        `tokens`: `drawn`, or `retokenised` where only text was known; `retokenised_otherwise`: answers whose text,
        tokenised again, gives other tokens; `logprob_difference`: mean absolute difference of an answer's
        log-probability. What is not known is left out.
    """
    facts: dict[str, Any] = {"tokens": "drawn" if "same_tokens" in table else "retokenised"}
    if "same_tokens" in table:
        facts["retokenised_otherwise"] = sum(not same for row in table.column("same_tokens") for same in row)
    if "engine_logprobs" in table:
        facts["logprob_difference"] = (table.values("engine_logprobs") - table.values("logprobs")).abs().mean().item()
    return facts


def sentence(table: CandidateTable) -> str:
    """The same in words, from a table's metadata; empty where transformers drew the answers."""
    facts = table.metadata.get("generation")
    if facts is None:
        return ""
    answers = sum(map(len, table.column("completions")))
    parts = [f"{label(table.metadata['generator'])} drew {answers} answers, transformers scored them"]
    if "logprob_difference" in facts:
        parts.append(f"their log-probabilities differ by {facts['logprob_difference']:.3g} an answer on average")
    if "retokenised_otherwise" in facts:
        parts.append(f"{facts['retokenised_otherwise']} would be tokenised otherwise")
    else:
        parts.append("their tokens are those of the text")
    return "; ".join(parts)
