"""Contrasts as columns of candidate tables, computed by the policy or by another causal model."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.engines import Engine, Tick
from shfcas.models.loading import load_policy
from shfcas.models.resolve import provenance
from shfcas.sampling.contrast import PREFIX, Principle, contrasts
from shfcas.utils.errors import UsageError
from shfcas.utils.progress import progress

BLOCK = 16  # prompts per task of an engine


class ContrastColumns:
    """Function of candidate tables that adds a column of contrasts for each principle.

    The model is loaded when the first table arrives, in the process that needs it.

    Args:
        model: name of the causal model that is asked, see `shfcas.models.loading`.
        principles: instruction pairs, at least one.
        chat_template: for a model without one.

    Attributes:
        about: the model, its version and the texts of the principles, as a table's metadata records them.

    Raises:
        UserError: there is no such model, or a principle is not usable.
        UsageError: there is no principle.
    """

    def __init__(self, model: str, principles: Sequence[Principle], chat_template: str | None = None) -> None:
        if not principles:
            raise UsageError("principles: expected at least one pair of instructions, got none; name good and bad")
        self.model, self.principles, self.chat_template = model, list(principles), chat_template
        self.about = {
            "policy_score_model": model,
            **provenance(policy_score_model=model),
            "principles": {p.column: p.texts() for p in self.principles},
        }

    def __call__(self, candidates: CandidateTable) -> CandidateTable:
        """Returns the table with the columns added; those of other principles are dropped."""
        return self._with(candidates, self._rows(candidates.rows()))

    def on(self, engine: Engine, candidates: CandidateTable) -> CandidateTable:
        """Returns the same, computed on the workers of an engine."""
        rows = [_needed(row) for row in candidates.rows()]
        tasks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        bar = progress(total=len(rows), desc="contrast")
        blocks = list(engine.map(partial(_BlockAsker, self), tasks, bar.update))
        bar.close()
        return self._with(candidates, [row for block in blocks for row in block])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_loaded"}

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return load_policy(self.model, self.chat_template)

    def _rows(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, list[float]]]:
        return list(contrasts(*self._loaded, rows, principles=self.principles))

    def _with(self, candidates: CandidateTable, rows: Sequence[dict[str, list[float]]]) -> CandidateTable:
        stale = [name for name in candidates.table.column_names if name.startswith(PREFIX)]
        table = CandidateTable(candidates.table.drop_columns(stale), candidates.metadata)
        columns = {p.column: [row[p.column] for row in rows] for p in self.principles}
        return table.with_columns(**columns).with_metadata(**self.about)


class _BlockAsker:
    """Worker that asks the model about a block of rows."""

    def __init__(self, columns: ContrastColumns) -> None:
        self.columns = columns

    def __call__(self, rows: Sequence[dict[str, Any]], tick: Tick) -> list[dict[str, list[float]]]:
        found = self.columns._rows(rows)
        tick(len(rows))
        return found


def _needed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("prompt_id", "prompt", "completions", "finished") if name in row}
