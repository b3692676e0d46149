"""Conflict-aware RLHF: find where a reward model and its policy disagree, and ask humans about just that.

The functional API lives here and needs torch alone; sampling, scoring, feedback and training are modules of
their own, imported by name.
"""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import Any as _Any

from shfcas.ops._library import build_facts
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

__version__ = _version("shfcas")

__all__ = [
    "ConflictScores",
    "KendallCounts",
    "KendallTest",
    "TokenLogprobs",
    "__version__",
    "ask",
    "ask_many",
    "build_facts",
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


def __getattr__(name: str) -> _Any:
    """Loads what needs more than torch when it is first used."""
    if name in ("ask", "ask_many"):
        return getattr(_importlib.import_module("shfcas.feedback.ask"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
