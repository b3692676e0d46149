"""Answer sets for comparisons: texts, rewards, conflicts, gold rewards, and features for a head."""

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
    """Answers to P prompts, T answers in total.

    Attributes:
        table: a candidate table with rewards and conflict columns.
        gold: the gold reward of every answer, shape (T,).
        features: input of the reward model's head for every answer, shape (T, D); None if no head is refined.
    """

    table: CandidateTable
    gold: np.ndarray
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Checks the lengths and values of the parts."""
        count = int(self.offsets[-1])
        for name, values in (("gold", self.gold), ("features", self.features)):
            if values is not None and len(values) != count:
                raise UserError(f"{name}: expected {count} values, one per answer, got {len(values)}")
            if values is not None and not np.isfinite(values).all():
                raise UserError(f"{name}: expected finite numbers, got NaN or infinity")

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[dict[str, Any]],
        gold: Sequence[Sequence[float]],
        features: np.ndarray | None = None,
        policy_score: str = "logprob",
    ) -> "AnswerSet":
        """Builds an answer set from the user's own answers.

        Args:
            rows: one dictionary per prompt with `prompt_id`, `prompt`, `completions`, `rewards`, the columns that the
                policy score needs, and any others; conflict columns are computed again.
            gold: gold rewards, one list per prompt.
            features: shape (T, D), in the order of the answers.
            policy_score: policy score to compare rewards with; see `shfcas.conflicts.columns.policy_scores`.
        """
        table = add_conflicts(CandidateTable.from_rows(rows), policy_score)
        return cls(table, np.concatenate([np.asarray(g, float) for g in gold]), features)

    @classmethod
    def from_table(cls, table: CandidateTable, features: np.ndarray | None = None) -> "AnswerSet":
        """Builds an answer set from a table with conflict columns and a column `gold`."""
        table.require("rewards", "pacs", "gold")
        return cls(table, table.values("gold").numpy(), features)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Returns one dictionary per prompt."""
        return self.table.rows()

    @cached_property
    def offsets(self) -> np.ndarray:
        """Returns the offsets of each prompt's answers in all answers, shape (P + 1,)."""
        return self.table.offsets().numpy()

    @cached_property
    def rewards(self) -> np.ndarray:
        """Returns the proxy's reward of every answer, before any refinement, shape (T,)."""
        return self.table.values("rewards").numpy()

    @cached_property
    def policy(self) -> np.ndarray:
        """Returns the policy score of every answer, shape (T,)."""
        name = self.table.metadata.get("policy_score", "logprob")
        return policy_scores(self.table.batch(), name).values.double().numpy()

    @cached_property
    def pairs(self) -> np.ndarray:
        """Returns all pairs of answers to one prompt with unequal gold: better, worse, prompt; shape (pairs, 3)."""
        found = []
        for prompt, (start, end) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            gold = self.gold[start:end]
            better, worse = (gold[:, None] > gold[None, :]).nonzero()
            found.append(np.stack([better + start, worse + start, np.full(len(better), prompt)], axis=1))
        return np.concatenate(found)

    def groups(self, column: str | None) -> np.ndarray:
        """Returns the value of a column for each prompt, as text, shape (P,)."""
        if column is None:
            return np.full(len(self), "")
        if column not in self.table:
            raise UserError(f"evaluation.group_by: expected a column of the prompts, got {column}, which they lack")
        return np.array([str(value) for value in self.table.column(column)])

    def pair_accuracy(self, rewards: np.ndarray) -> np.ndarray:
        """Returns per prompt the fraction of pairs that the rewards order as gold does, shape (P,); NaN without pairs.

        A tie counts half.

        Args:
            rewards: rewards of every answer, shape (T,).
        """
        better, worse, prompt = self.pairs.T
        difference = rewards[better] - rewards[worse]
        right = (difference > 0) + 0.5 * (difference == 0)
        counts = np.bincount(prompt, minlength=len(self))
        with np.errstate(invalid="ignore"):
            return np.bincount(prompt, right, len(self)) / counts

    def best_gold(self, rewards: np.ndarray) -> np.ndarray:
        """Returns the gold reward of each prompt's answer with the highest reward (first of ties), shape (P,)."""
        starts = zip(self.offsets, self.offsets[1:], strict=False)
        return np.array([self.gold[start + rewards[start:end].argmax()] for start, end in starts])

    def conflict(self, rewards: np.ndarray) -> dict[str, float]:
        """Returns the mean Kendall distance and mean absolute PACS of other rewards with the same policy scores."""
        found = conflict_scores(
            torch.from_numpy(np.ascontiguousarray(rewards, float)),
            torch.from_numpy(np.ascontiguousarray(self.policy)),
            offsets=torch.from_numpy(self.offsets),
        )
        return {
            "kendall_distance": float(found.kendall_distance.nanmean()),
            "mean_abs_pacs": float(found.mean_abs_pacs.nanmean()),
        }
