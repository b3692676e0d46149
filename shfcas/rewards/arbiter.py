"""The arbiter: a small logistic model of how far to trust the reward model and the policy where they disagree.

A label about two completions is a verdict between two sources: the reward model and the policy's score. With z-scores
per prompt, the reward gap r and the policy gap p of a pair (first less second), and the prompt's group g,

    P(first is better) = sigmoid((t_r + u_g) r + t_p p)

`t_r` and `t_p` are the global trust in each source, `u_g` is how much more the reward model is trusted in group g.
Priors: t_r ~ N(0.5, 0.35^2), t_p ~ N(0.5, 0.35^2), u_g ~ N(0, 0.7^2), so without labels both sources count alike, and
a few labels change little; other prior means may be given. The posterior is the Laplace approximation at its mode
(MacKay 1992, Neural Computation 4(5)): with dozens of labels and a handful of parameters it is close to Gaussian, and
its evidence chooses among groupings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SPREAD = 0.7  # prior deviation of the group terms
PRIOR_TRUST = (0.5, 0.5)  # prior means of t_r and t_p
PRIOR_SD = 0.35
ONE_GROUP = ""  # the group of every pair where there is no grouping
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Pairs:
    """Pairs of completions as the arbiter sees them.

    Attributes:
        reward_gap: z-scored reward of the first completion less that of the second, shape (n,).
        policy_gap: the same for the policy's score, shape (n,).
        group: the group of each pair's prompt, shape (n,).
    """

    reward_gap: np.ndarray
    policy_gap: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.reward_gap)

    def __getitem__(self, which: np.ndarray) -> "Pairs":
        """The pairs at these positions, or where a mask is true."""
        return Pairs(self.reward_gap[which], self.policy_gap[which], self.group[which])

    def regrouped(self, group: Sequence[str] | np.ndarray | None) -> "Pairs":
        """The same pairs under another grouping; None puts all into one group."""
        names = np.full(len(self), ONE_GROUP) if group is None else np.asarray(group, dtype=str)
        return replace(self, group=names)


@dataclass(frozen=True)
class Arbiter:
    """The posterior of the trusts.

    Attributes:
        groups: names of the groups that have a term of their own.
        mean: mode of the posterior: t_r, t_p, then u of each group, shape (2 + G,).
        covariance: inverse curvature there, shape (2 + G, 2 + G).
        spread: prior deviation of the group terms.
        evidence: log marginal likelihood of the labels.
        labels: how many labels it was fitted to.
    """

    groups: tuple[str, ...]
    mean: np.ndarray
    covariance: np.ndarray
    spread: float
    evidence: float
    labels: int

    def features(self, pairs: Pairs) -> np.ndarray:
        """The pairs' gaps as the model's features, shape (n, 2 + G); a group without labels has its prior only."""
        return _features(pairs, self.groups)

    def probability(self, pairs: Pairs) -> np.ndarray:
        """Posterior probability that the first completion is better, shape (n,).

        The uncertainty of the trusts pulls it towards 1/2 (MacKay's approximation of the integral over a Gaussian).
        Pairs of a group without labels also carry the prior variance of that group's term.
        """
        features = self.features(pairs)
        variance = np.einsum("ij,jk,ik->i", features, self.covariance, features)
        unseen = ~np.isin(pairs.group, self.groups)
        variance = variance + unseen * (self.spread * pairs.reward_gap) ** 2
        return _sigmoid(features @ self.mean / np.sqrt(1 + math.pi / 8 * variance))

    def reward_trust(self, groups: Sequence[str]) -> np.ndarray:
        """Mean trust in the reward model in each of these groups, shape (n,); below 0 it is mostly wrong there.

        In a group without a term of its own, that is the overall trust.
        """
        names = np.array(groups, dtype=str)
        return self.features(Pairs(np.ones(len(names)), np.zeros(len(names)), names)) @ self.mean

    def trust(self) -> list[dict[str, Any]]:
        """How far each source is trusted: a row per source, and per group for the reward model.

        Returns:
            Rows with `source`, `group` (empty: overall), `trust` (the slope per unit of z-score gap), `low`, `high`
            (95 % interval). A trust of 0 means that the source says nothing, below 0 that it is wrong more often than
            right.
        """
        rows = [("reward model", ONE_GROUP, _unit(len(self.mean), 0)), ("policy", ONE_GROUP, _unit(len(self.mean), 1))]
        for number, name in enumerate(self.groups):
            rows.append(("reward model", name, _unit(len(self.mean), 0) + _unit(len(self.mean), 2 + number)))
        found = []
        for source, group, direction in rows:
            value = float(direction @ self.mean)
            half = Z95 * math.sqrt(float(direction @ self.covariance @ direction))
            found.append({"source": source, "group": group, "trust": value, "low": value - half, "high": value + half})
        return found


def prior_arbiter(
    trust: tuple[float, float] = PRIOR_TRUST,
    groups: Sequence[str] = (),
    spread: float = 0.0,
    *,
    deviation: float = PRIOR_SD,
) -> Arbiter:
    """Returns the arbiter before any label, which trusts the reward model alike in all groups.

    Args:
        trust: trust in the reward model and in the policy.
        groups: groups with a term of their own.
        spread: prior deviation of these terms.
        deviation: prior deviation of the trust in the reward model and in the policy.
    """
    mean = np.concatenate([np.array(trust, np.float64), np.zeros(len(groups))])
    covariance = np.diag(np.concatenate([np.full(2, deviation**2), np.full(len(groups), spread**2)]))
    return Arbiter(tuple(groups), mean, covariance, spread, 0.0, 0)


def fit_arbiter(
    pairs: Pairs,
    first_is_better: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    spread: float | None = None,
    groups: Sequence[str] | None = None,
    trust: tuple[float, float] = PRIOR_TRUST,
    deviation: float = PRIOR_SD,
) -> Arbiter:
    """Fits the arbiter to labelled pairs.

    Args:
        pairs: the labelled pairs.
        first_is_better: 1 where the first completion was preferred, 0 where the second was, shape (n,). A tie is 0.5.
        weights: weight of each label, shape (n,); see `selection_weights`. None: 1 each.
        spread: prior deviation of the group terms. None: 0.7, or 0 with a single group.
        groups: groups with a term of their own, also if they have no labels. None: those of the labels.
        trust: prior means of the trust in the reward model and in the policy.
        deviation: their prior deviation.

    Raises:
        ValueError: lengths differ, or a value is not finite.
    """
    outcome = np.asarray(first_is_better, dtype=np.float64)
    weight = np.ones(len(pairs)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(pairs) == len(outcome) == len(weight) == len(pairs.policy_gap) == len(pairs.group):
        raise ValueError(f"arbiter: {len(pairs)} pairs, {len(outcome)} outcomes, {len(weight)} weights")
    if not all(np.isfinite(a).all() for a in (pairs.reward_gap, pairs.policy_gap, outcome, weight)):
        raise ValueError("arbiter: expected finite gaps, outcomes and weights")
    if len(pairs) == 0:
        return prior_arbiter(trust, (groups or ()) if spread else (), spread or 0.0, deviation=deviation)
    names = tuple(sorted(set(pairs.group.tolist()) if groups is None else groups))
    if spread is None:
        spread = SPREAD if len(names) > 1 else 0.0
    return _fit(pairs, outcome, weight, spread=spread, names=names, trust=trust, deviation=deviation)


def fit_best_grouping(
    pairs: Pairs,
    first_is_better: np.ndarray,
    groupings: Mapping[str, Sequence[str]],
    *,
    weights: np.ndarray | None = None,
    trust: tuple[float, float] = PRIOR_TRUST,
) -> tuple[str, Arbiter, dict[str, float]]:
    """Fits the arbiter under several groupings of the prompts and returns the one with the highest evidence.

    Args:
        pairs: the labelled pairs; their own grouping is ignored.
        first_is_better: see `fit_arbiter`.
        groupings: by name, the group of each pair. One group for all (named "") is always a candidate.
        weights: see `fit_arbiter`.
        trust: see `fit_arbiter`.

    Returns:
        The name of the grouping, its arbiter, and the log evidence of every grouping by name.
    """
    fits = [(ONE_GROUP, fit_arbiter(pairs.regrouped(None), first_is_better, weights=weights, trust=trust))]
    for name, group in groupings.items():
        fits.append((name, fit_arbiter(pairs.regrouped(group), first_is_better, weights=weights, trust=trust)))
    name, best = max(fits, key=lambda fit: fit[1].evidence)
    return name, best, {name: arbiter.evidence for name, arbiter in fits}


def selection_weights(asked: np.ndarray, pool: np.ndarray, *, bins: int = 4, cap: float = 4.0) -> np.ndarray:
    """Weights that make the asked pairs count like a random draw from the pool.

    Labels chosen by conflict over-represent pairs on which the sources disagree. Within the logistic model that is no
    bias, because the choice depends on the gaps alone. Where the model is only roughly right, the weights keep it right
    on the pool on average (Shimodaira 2000, J. Stat. Plan. Inference 90(2)).

    Args:
        asked: the conflict of each asked pair, shape (n,), such as policy gap less reward gap.
        pool: the conflict of each pair of the pool, shape (m,).
        bins: quantile bins of the pool in which shares are compared.
        cap: largest weight, and the inverse of the smallest, before they are scaled to mean 1.

    Returns:
        Weights of mean 1, shape (n,).
    """
    if len(asked) == 0:
        return np.zeros(0)
    edges = np.quantile(pool, np.linspace(0, 1, bins + 1)[1:-1])
    share_pool = np.bincount(np.searchsorted(edges, pool), minlength=bins) / len(pool)
    where = np.searchsorted(edges, asked)
    share_asked = np.bincount(where, minlength=bins) / len(asked)
    weights = np.clip(share_pool[where] / share_asked[where], 1 / cap, cap)
    return weights / weights.mean()


def most_informative(arbiter: Arbiter, candidates: Pairs, pool: Pairs, budget: int) -> list[int]:
    """Chooses the comparisons that shrink the posterior variance of the pool's verdicts most, one after another.

    The formal version of conflict: a label tells the trusts apart where the sources' gaps point different ways and the
    verdict is open. Once that is known, pairs on which the sources agree tell how far to trust both. The variance is
    that of the log-odds. With the Laplace posterior it does not depend on a label's outcome, so the whole batch can be
    chosen before anything is asked (V-optimal design; Chaloner and Verdinelli 1995, Stat. Sci. 10(3)).

    Args:
        arbiter: the current posterior.
        candidates: comparisons that may be asked.
        pool: the pairs whose verdicts count.
        budget: how many to choose.

    Returns:
        Positions among the candidates, most informative first; fewer than `budget` if there are fewer candidates.
    """
    target = arbiter.features(pool)
    return smallest_variance(arbiter, candidates, target.T @ target / max(len(target), 1), budget)


def smallest_variance(
    arbiter: Arbiter,
    candidates: Pairs,
    moment: np.ndarray,
    budget: int,
    *,
    take_turns: Sequence[Any] | None = None,
) -> list[int]:
    """Chooses comparisons like `most_informative`, for a pool that is described by its second moments.

    Args:
        arbiter: the current posterior.
        candidates: comparisons that may be asked.
        moment: mean outer product of the features of the pool, shape (2 + G, 2 + G). The posterior variance of the
            log-odds, averaged over the pool, is the trace of its product with the covariance.
        budget: how many to choose.
        take_turns: the prompt of each candidate. No prompt is chosen again before all others with candidates left
            have been chosen as often. None: candidates of one prompt do not wait for others.

    Returns:
        Positions among the candidates, most informative first; fewer than `budget` if there are fewer candidates.
    """
    features = arbiter.features(candidates)
    probability = _sigmoid(features @ arbiter.mean)
    information = probability * (1 - probability)
    prompts = np.unique(np.asarray(take_turns, dtype=str), return_inverse=True)[1] if take_turns is not None else None
    covariance, left, chosen = arbiter.covariance.copy(), np.ones(len(features), bool), []
    waiting = np.zeros(len(features), bool)
    for _ in range(min(budget, len(features))):
        if not (left & ~waiting).any():
            waiting[:] = False
        projected = features @ covariance
        gain = np.einsum("ij,jk,ik->i", projected, moment, projected)
        gain = information * gain / (1 + information * np.einsum("ij,ij->i", projected, features))
        best = int(np.where(left & ~waiting, gain, -np.inf).argmax())
        chosen.append(best)
        left[best] = False
        if prompts is not None:
            waiting |= prompts == prompts[best]
        step = projected[best]
        scale = information[best] / (1 + information[best] * float(step @ features[best]))
        covariance -= scale * np.outer(step, step)
    return chosen


def _fit(
    pairs: Pairs,
    outcome: np.ndarray,
    weight: np.ndarray,
    *,
    spread: float,
    names: tuple[str, ...],
    trust: tuple[float, float],
    deviation: float,
) -> Arbiter:
    """The mode by Newton's method with step halving; the objective is strictly convex."""
    groups = names if spread > 0 else ()
    features = _features(pairs, groups)
    prior_mean = np.concatenate([np.array(trust, np.float64), np.zeros(len(groups))])
    precision = np.concatenate([np.full(2, deviation**-2), np.full(len(groups), spread**-2 if spread else 0.0)])

    def objective(at: np.ndarray) -> float:
        logits = features @ at
        loss = weight @ (np.logaddexp(0, logits) - outcome * logits)
        return float(loss + 0.5 * precision @ (at - prior_mean) ** 2)

    def curvature(at: np.ndarray) -> np.ndarray:
        share = _sigmoid(features @ at)
        return (features * (weight * share * (1 - share))[:, None]).T @ features + np.diag(precision)

    mean, value = prior_mean, objective(prior_mean)
    for _ in range(100):
        slope = features.T @ (weight * (_sigmoid(features @ mean) - outcome)) + precision * (mean - prior_mean)
        step, size = np.linalg.solve(curvature(mean), slope), 1.0
        while (lower := objective(mean - size * step)) > value and size > 1e-8:
            size /= 2
        mean, done = mean - size * step, value - lower < 1e-12 * (1 + abs(value))
        value = min(value, lower)
        if done:
            break
    hessian = curvature(mean)
    evidence = -value + 0.5 * float(np.log(precision).sum() - np.linalg.slogdet(hessian)[1])
    return Arbiter(groups, mean, np.linalg.inv(hessian), spread, evidence, len(pairs))


def _features(pairs: Pairs, groups: Sequence[str]) -> np.ndarray:
    own = [np.where(pairs.group == name, pairs.reward_gap, 0.0) for name in groups]
    return np.stack([pairs.reward_gap, pairs.policy_gap, *own], axis=1).astype(np.float64)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))


def _unit(size: int, position: int) -> np.ndarray:
    vector = np.zeros(size)
    vector[position] = 1.0
    return vector
