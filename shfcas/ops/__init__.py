"""Compiled ops and their Python wrappers; `shfcas` exports the same names.

`functional` and `logprobs` have the documented functions, `reference` slow versions for tests.
"""

from shfcas.ops.functional import (
    ConflictScores,
    KendallCounts,
    KendallTest,
    conflict_scores,
    kendall_counts,
    kendall_distance,
    kendall_distance_matrix,
    kendall_tau,
    kendall_tau_matrix,
    kendall_test,
    pacs,
)
from shfcas.ops.logprobs import TokenLogprobs, linear_token_logprobs, sequence_logprobs, token_logprobs

__all__ = [
    "ConflictScores",
    "KendallCounts",
    "KendallTest",
    "TokenLogprobs",
    "conflict_scores",
    "kendall_counts",
    "kendall_distance",
    "kendall_distance_matrix",
    "kendall_tau",
    "kendall_tau_matrix",
    "kendall_test",
    "linear_token_logprobs",
    "pacs",
    "sequence_logprobs",
    "token_logprobs",
]
