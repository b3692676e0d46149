"""Refinement of a head on soft labels, with labels as arbiters between reward model and policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shfcas.compare.answers import AnswerSet
from shfcas.compare.cells import Label
from shfcas.compare.heads import Head, HeadFit
from shfcas.rewards.arbiter import PRIOR_TRUST, Arbiter, Pairs, fit_arbiter, prior_arbiter
from shfcas.rewards.second_opinion import Pool, pool_of, standard_scores


@dataclass(frozen=True)
class RefineOpinion:
    """Refinement of a linear head on soft labels of all pairs of the pool, in milliseconds.

    Attributes:
        pool: the pool's answers, with features.
        held_out: features of the held-out answers.
        fit: fits heads to the earlier pairs and the new ones.
        arbitrate: whether the labels decide how far reward model and policy are trusted; otherwise they are only
            further pairs.
        trust: prior trust in the reward model and in the policy.
        group_by: a column of the prompts by which trust in the reward model may differ; None: one trust.
        label_weight: weight of a label; a soft label has weight 1.
        earlier: weight of each earlier pair.
    """

    pool: AnswerSet
    held_out: np.ndarray
    fit: HeadFit
    arbitrate: bool = True
    trust: tuple[float, float] = PRIOR_TRUST
    group_by: str | None = None
    label_weight: float = 1.0
    earlier: float = 0.0

    @cached_property
    def pairs(self) -> Pool:
        """All pairs of the pool's answers."""
        groups = None if self.group_by is None else self.pool.groups(self.group_by).tolist()
        return pool_of(self.pool.rows, groups)

    @cached_property
    def scores(self) -> np.ndarray:
        """z-scores of reward model and policy for every answer, shape (T, 2)."""
        return np.concatenate([np.stack(standard_scores(row), axis=1) for row in self.pool.rows])

    def __call__(self, labels: Sequence[Label], seed: int) -> np.ndarray:
        """Returns the rewards of the held-out answers; the optimum is unique, so the seed does not matter."""
        return self.head(labels)(self.held_out)

    @cached_property
    def soft(self) -> HeadFit:
        """Fits heads to the earlier pairs and all pairs of the pool."""
        features, pairs = self.pool.features, self.pairs
        assert features is not None
        start = self.pool.offsets[pairs.row]
        return self.fit.joined(features[start + pairs.first] - features[start + pairs.second])

    def head(self, labels: Sequence[Label]) -> Head:
        """Returns the head that is refined on soft labels and labels."""
        features = self.pool.features
        assert features is not None
        soft = self.arbiter(labels).probability(self.pairs.pairs)
        sure = np.ones(len(self.fit.margins))
        chosen, rejected = (np.array([x[side] for x in labels], dtype=np.int64) for side in (1, 2))
        return self.soft(
            features[chosen] - features[rejected],
            self.label_weight,
            earlier=np.concatenate([self.earlier * sure, np.ones(len(soft))]),
            probability=np.concatenate([sure, soft]),
        )

    def arbiter(self, labels: Sequence[Label]) -> Arbiter:
        """Returns the trust that the soft labels rest on."""
        if not self.arbitrate or not labels:
            return prior_arbiter(self.trust)
        gaps = self.scores[[x.chosen for x in labels]] - self.scores[[x.rejected for x in labels]]
        groups = self.pool.groups(self.group_by)[[x.prompt for x in labels]]
        return fit_arbiter(Pairs(gaps[:, 0], gaps[:, 1], groups), np.ones(len(labels)), trust=self.trust)
