"""Answers about which everything is known: texts, rewards, conflicts, gold, and the features that a head reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from shfcas.conflicts.columns import add_conflicts, policy_scores
from shfcas.data.candidates import CandidateTable
from shfcas.ops.functional import conflict_scores
from shfcas.utils.errors import UserError


@dataclass(frozen=True)
class AnswerSet:
    """The answers to some prompts, P prompts with T answers in all.

    Attributes:
        table: a candidate table with rewards and conflict columns.
        gold: the gold reward of every answer, shape (T,).
        features: what the reward model's head reads of every answer, shape (T, D); None where no head is refined.
    """

    table: CandidateTable
    gold: np.ndarray
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Says which of the parts do not belong together."""
        count = int(self.offsets[-1])
        for name, values in (("gold", self.gold), ("features", self.features)):
            if values is not None and len(values) != count:
                raise UserError(f"{name}: {len(values)} values for {count} answers")
            if values is not None and not np.isfinite(values).all():
                raise UserError(f"{name}: a value is not a finite number")

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[dict[str, Any]],
        gold: Sequence[Sequence[float]],
        features: np.ndarray | None = None,
        policy_score: str = "logprob",
    ) -> "AnswerSet":
        """Answers made elsewhere.

        Args:
            rows: one dictionary a prompt with `prompt_id`, `prompt`, `completions`, `rewards`, the columns that the
                policy score needs, and any others; conflict columns are made anew.
            gold: gold rewards, one list a prompt.
            features: shape (T, D), in the order of the answers.
            policy_score: what rewards are compared with; see `shfcas.conflicts.columns.policy_scores`.
        """
        table = add_conflicts(CandidateTable.from_rows(rows), policy_score)
        return cls(table, np.concatenate([np.asarray(g, float) for g in gold]), features)

    @classmethod
    def from_table(cls, table: CandidateTable, features: np.ndarray | None = None) -> "AnswerSet":
        """The answers of a table with conflict columns and a column `gold`."""
        table.require("rewards", "pacs", "gold")
        return cls(table, table.values("gold").numpy(), features)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a prompt."""
        return self.table.rows()

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each prompt's answers begin among all answers, shape (P + 1,)."""
        return self.table.offsets().numpy()

    @cached_property
    def rewards(self) -> np.ndarray:
        """The proxy's reward of every answer, before any refinement, shape (T,)."""
        return self.table.values("rewards").numpy()

    @cached_property
    def policy(self) -> np.ndarray:
        """The policy score of every answer, shape (T,)."""
        name = self.table.metadata.get("policy_score", "logprob")
        return policy_scores(self.table.batch(), name).values.double().numpy()

    @cached_property
    def pairs(self) -> np.ndarray:
        """All pairs of answers to one prompt with unequal gold: better, worse, prompt; shape (pairs, 3)."""
        found = []
        for prompt, (start, end) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            gold = self.gold[start:end]
            better, worse = (gold[:, None] > gold[None, :]).nonzero()
            found.append(np.stack([better + start, worse + start, np.full(len(better), prompt)], axis=1))
        return np.concatenate(found)

    def groups(self, column: str | None) -> np.ndarray:
        """The value of a column for each prompt, as text, shape (P,)."""
        if column is None:
            return np.full(len(self), "")
        if column not in self.table:
            raise UserError(f"evaluation.group_by: the prompts have no column {column}")
        return np.array([str(value) for value in self.table.column(column)])

    def pair_accuracy(self, rewards: np.ndarray) -> np.ndarray:
        """Each prompt's share of pairs that the rewards order as gold does, ties half, shape (P,); NaN without pairs.

        Args:
            rewards: of every answer, shape (T,).
        """
        better, worse, prompt = self.pairs.T
        difference = rewards[better] - rewards[worse]
        right = (difference > 0) + 0.5 * (difference == 0)
        counts = np.bincount(prompt, minlength=len(self))
        with np.errstate(invalid="ignore"):
            return np.bincount(prompt, right, len(self)) / counts

    def best_gold(self, rewards: np.ndarray) -> np.ndarray:
        """The gold reward of each prompt's answer with the highest reward, of equal ones the first, shape (P,)."""
        starts = zip(self.offsets, self.offsets[1:], strict=False)
        return np.array([self.gold[start + rewards[start:end].argmax()] for start, end in starts])

    def conflict(self, rewards: np.ndarray) -> dict[str, float]:
        """Mean Kendall distance and mean absolute PACS of other rewards with the same policy scores."""
        found = conflict_scores(
            torch.from_numpy(np.ascontiguousarray(rewards, float)),
            torch.from_numpy(np.ascontiguousarray(self.policy)),
            offsets=torch.from_numpy(self.offsets),
        )
        return {
            "kendall_distance": float(found.kendall_distance.nanmean()),
            "mean_abs_pacs": float(found.mean_abs_pacs.nanmean()),
        }
