"""Uncertainty of a single reward model: a Laplace approximation of its last layer.

A reward model is a linear head w on features x of an answer. Its training pairs have differences d = x_chosen -
x_rejected and margins m. With a Gaussian prior N(0, I / lambda), the Laplace approximation of the posterior of the head
has the covariance

    S = (lambda I + sum_i q_i (1 - q_i) d_i d_i^T)^-1,    q_i = sigmoid(d_i w - m_i)

which is the inverse curvature of the Bradley-Terry loss at the trained head (MacKay 1992; for last layers Daxberger et
al. 2021, arXiv 2106.14806). The prior precision lambda maximises the evidence, lambda |w|^2 = sum_k h_k / (h_k +
lambda) with the eigenvalues h of the sum. Everything before the last layer counts as certain.

Preferences determine a head only up to what the answers of a prompt have in common. So the variance of an answer is
that of its reward minus the mean reward of its prompt's answers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shfcas.data.chat import model_inputs
from shfcas.data.messages import Prompt, plain_completion
from shfcas.data.preferences import Preference
from shfcas.models.loading import load_reward_model
from shfcas.models.resolve import is_cost_model
from shfcas.rewards.features import last_layer, rewards_and_features
from shfcas.rewards.scorers import ModelScorer, check_scorer, ensemble_members
from shfcas.utils.callables import is_callable_name
from shfcas.utils.errors import UserError
from shfcas.utils.progress import progress
from shfcas.utils.seeds import derive_seed

PAIRS_AT_ONCE = 512
Differences = tuple[np.ndarray, np.ndarray]  # of pairs: features of chosen minus rejected, (n, D), and margins, (n,)


@dataclass(frozen=True)
class HeadPosterior:
    """The Laplace posterior of a linear reward head.

    Attributes:
        directions: eigenvectors of the curvature, as columns, shape (D, D).
        variance: posterior variance of the weight along each, shape (D,).
        prior_precision: lambda.
        pairs: number of training pairs.
        members: number of heads to sample for the column `member_rewards`; 0 samples none.
    """

    directions: np.ndarray
    variance: np.ndarray
    prior_precision: float
    pairs: int
    members: int = 0

    def variances(self, features: np.ndarray, counts: Sequence[int]) -> list[list[float]]:
        """Returns the variance of each answer's reward minus the mean reward of its prompt's answers.

        Args:
            features: of the answers of all prompts, one prompt after another, shape (T, D).
            counts: number of answers of each prompt.
        """
        each = self._centred(features, counts)
        return [(rows * rows @ self.variance).tolist() for rows in each]

    def member_rewards(
        self, rewards: Sequence[Sequence[float]], features: np.ndarray, counts: Sequence[int]
    ) -> list[list[list[float]]]:
        """Returns the reward of each answer by each of `members` heads, which are draws from the posterior.

        A draw differs from the trained head in how it orders a prompt's answers, not in their mean. The draws are the
        same for all answers and in all processes.

        Args:
            rewards: by the trained head, one list per prompt.
            features: see `variances`.
            counts: see `variances`.
        """
        draws = np.random.default_rng(derive_seed("laplace heads")).standard_normal((len(self.variance), self.members))
        draws *= np.sqrt(self.variance)[:, None]
        each = self._centred(features, counts)
        return [(np.array(row)[:, None] + rows @ draws).tolist() for row, rows in zip(rewards, each, strict=True)]

    def _centred(self, features: np.ndarray, counts: Sequence[int]) -> Iterator[np.ndarray]:
        """Yields the features of each prompt's answers minus their mean, along the eigenvectors."""
        for rows in np.split(features.astype(np.float64), np.cumsum(counts)[:-1]):
            yield (rows - rows.mean(axis=0)) @ self.directions

    def about(self) -> dict[str, Any]:
        """Returns what a table's metadata record."""
        about = {"method": "laplace", "pairs": self.pairs, "prior_precision": self.prior_precision}
        return about | {"members": self.members} if self.members else about


def fit_head_posterior(
    weight: np.ndarray, blocks: Iterable[Differences], prior_precision: float | None = None
) -> HeadPosterior:
    """Computes the Laplace posterior of a trained head.

    Args:
        weight: the trained head, shape (D,).
        blocks: the pairs that it was trained on, in parts.
        prior_precision: lambda; None: the one of highest evidence.

    Raises:
        UserError: there are no pairs, or the head is zero.
    """
    weight = np.asarray(weight, np.float64)
    curvature, pairs = np.zeros((len(weight), len(weight))), 0
    for differences, margins in blocks:
        differences = differences.astype(np.float64)
        open_share = 0.25 / np.cosh((differences @ weight - margins) / 2) ** 2
        curvature += (differences * open_share[:, None]).T @ differences
        pairs += len(differences)
    if not pairs or not weight.any():
        raise UserError(f"uncertainty laplace: expected a trained head and its training pairs, got {pairs} pairs")
    values, directions = np.linalg.eigh(curvature)
    values = np.maximum(values, 0)
    if prior_precision is None:
        prior_precision = evidence_precision(values, float(weight @ weight))
    return HeadPosterior(directions, 1 / (values + prior_precision), prior_precision, pairs)


def evidence_precision(eigenvalues: np.ndarray, square: float) -> float:
    """Returns the prior precision that maximises the Laplace evidence of a head (MacKay 1992).

    Args:
        eigenvalues: of the curvature of the loss, shape (D,).
        square: |w|^2.
    """
    low, high = -60.0, 60.0  # log lambda; the slope of the evidence changes its sign once
    for _ in range(100):
        middle = (low + high) / 2
        precision = np.exp(middle)
        if precision * square < (eigenvalues / (eigenvalues + precision)).sum():
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


class LaplaceScorer:
    """Reward model that also gives the uncertainty of its head.

    Args:
        name: a reward model.
        posterior: the posterior of its head.
        cost_model: lower is better.
    """

    def __init__(self, name: str, posterior: HeadPosterior, cost_model: bool = False) -> None:
        self.name, self.posterior = name, posterior
        self.scorer = ModelScorer(*load_reward_model(name))
        self.sign = -1.0 if cost_model or is_cost_model(name) else 1.0
        self.__name__ = self.scorer.__name__

    def __call__(self, prompts: list[Prompt], completions: list[Any], **columns: Any) -> list[float]:
        """Returns the rewards, as `ModelScorer` does."""
        return self.rewards_and_features(prompts, completions)[0]

    def rewards_and_features(self, prompts: list[Prompt], completions: list[Any]) -> tuple[list[float], np.ndarray]:
        """Returns the rewards of answers, and their features, shape (T, D)."""
        encoded = [
            model_inputs(self.scorer.tokenizer, prompt, plain_completion(completion), self.scorer.max_length, cut=True)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        rewards, features = rewards_and_features(self.name, self.scorer, encoded)
        return [self.sign * reward for reward in rewards], features


def fit_laplace(name: str, preferences: Sequence[Preference], cost_model: bool = False) -> HeadPosterior:
    """Computes the Laplace posterior of a reward model's head.

    Args:
        name: a reward model.
        preferences: the pairs that it was trained on. Pairs longer than its limit are skipped, as in training.
        cost_model: lower is better.

    Raises:
        UserError: the name is that of an ensemble or a function, or the model's score is not linear in its features.
    """
    if ensemble_members(name):
        raise UserError(
            f"uncertainty laplace: expected one reward model, got the ensemble {name}, which gives variances anyway; "
            "set uncertainty to none"
        )
    if is_callable_name(name):
        raise UserError(f"uncertainty laplace: expected a reward model, got the function {name}; it has no last layer")
    check_scorer(name)
    scorer = ModelScorer(*load_reward_model(name))
    sign = -1 if cost_model or is_cost_model(name) else 1
    weight = sign * last_layer(name, scorer.model).weight.detach().double().flatten().cpu().numpy()
    return fit_head_posterior(weight, _differences(name, scorer, preferences))


def _differences(name: str, scorer: ModelScorer, preferences: Sequence[Preference]) -> Iterator[Differences]:
    """Yields the feature differences and margins of the pairs, some at a time."""
    for start in progress(range(0, len(preferences), PAIRS_AT_ONCE), "features of training pairs"):
        chosen, rejected, margins = [], [], []
        for p in preferences[start : start + PAIRS_AT_ONCE]:
            try:
                ids = [model_inputs(scorer.tokenizer, p.prompt, a, scorer.max_length) for a in (p.chosen, p.rejected)]
            except UserError:
                continue
            chosen.append(ids[0])
            rejected.append(ids[1])
            margins.append(p.margin or 0.0)
        if chosen:
            _, features = rewards_and_features(name, scorer, [*chosen, *rejected])
            yield features[: len(chosen)] - features[len(chosen) :], np.array(margins)
