"""The policy score of a run: what it is, which model is asked, and what a stage that uses it depends on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.conflicts.columns import CONTRASTS, add_conflicts
from shfcas.conflicts.contrasts import ContrastColumns
from shfcas.data.candidates import CandidateTable
from shfcas.engines import Engine
from shfcas.pipeline.content import Model, Source, template_content
from shfcas.sampling.contrast import Principle


@dataclass(frozen=True)
class PolicyScore:
    """The policy score of a run.

    Attributes:
        name: one of `shfcas.conflicts.columns.POLICY_SCORES`.
        model: for a contrast, the causal model that is asked: the policy, or another one.
        principles: for a contrast, the pairs of instructions.
        chat_template: for a model without one.
    """

    name: str = "logprob"
    model: str | Path = ""
    principles: Sequence[Principle] = ()
    chat_template: str | None = None

    @property
    def asks(self) -> bool:
        """Whether a model is asked under principles."""
        return self.name in CONTRASTS

    def columns(self) -> ContrastColumns:
        """Returns the function that adds the columns of contrasts."""
        return ContrastColumns(str(self.model), self.principles, self.chat_template)

    def add_conflicts(self, candidates: CandidateTable, engine: Engine) -> CandidateTable:
        """Adds the columns of the score that are missing, and the conflict columns, to a table with rewards."""
        table = self.columns().on(engine, candidates) if self.asks else candidates
        return add_conflicts(table, self.name)

    def inputs(self) -> dict[str, Source]:
        """Returns what a stage that adds the score reads."""
        return {"policy_score_model": Model(self.model)} if self.asks else {}

    def settings(self) -> dict[str, Any]:
        """Returns the part of the configuration that a stage with the score uses."""
        found: dict[str, Any] = {"policy_score": self.name}
        if self.asks:
            found["principles"] = [principle.texts() for principle in self.principles]
            found["chat_template"] = template_content(self.chat_template)
        return found
