"""Feedback on comparisons: one protocol, one module per source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import Preference
from shfcas.selection import Comparison
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_jsonl


class FeedbackSource(Protocol):
    """Source of preferences between two answers: annotators, a gold model, a judge."""

    def __call__(self, comparisons: Sequence[Comparison], candidates: CandidateTable, round: int) -> list[Preference]:
        """Judges the comparisons. A tie gives no preference, so there may be fewer preferences than comparisons."""


def read_queue(path: str | Path) -> list[Comparison]:
    """Reads a queue file: JSON lines of `prompt_id`, `first`, `second`, and `audit` where a pair belongs to the audit.

    Raises:
        UserError: a row lacks a field; the message names the row.
    """
    comparisons = []
    for index, row in enumerate(read_jsonl(path)):
        try:
            first, second, audit = int(row["first"]), int(row["second"]), bool(row.get("audit", False))
            comparisons.append(Comparison(str(row["prompt_id"]), first, second, audit))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: row {index} needs prompt_id, first and second") from None
    return comparisons
