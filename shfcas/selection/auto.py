"""Sequential labelling: after each batch of labels, whether another one is worth asking for, and which.

The arbiter's posterior (`shfcas.rewards.arbiter`) says how often its verdicts over the pool are right, and how far
further labels may move them. For a pair with features x, let the log-odds have the posterior mean mu and variance v,
and v' < v after a batch. Before the batch is asked, the later mean u is N(mu, v - v'). With the probit approximation of
the logistic function (MacKay 1992), sigmoid(z) = Phi(z sqrt(pi / 8)), the expected accuracies of the verdicts are

    now    mean over the pool of    Phi(|mu| / sqrt(8 / pi + v))
    later  mean over the pool of  E Phi(|u| / sqrt(8 / pi + v'))

The difference is the expected value of sample information (Raiffa and Schlaifer 1961). It is about 0 if no label could
change a verdict. The spread of the groups' trust is averaged over, weighted by evidence: a few labels do not decide
that all groups are alike.

All of this is the arbiter's own belief. It is right on average if labels follow its model, with trusts from its prior.
Where neither source knows anything it is too optimistic: it expects the sources to be of some use.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from shfcas.rewards.arbiter import PRIOR_TRUST, Arbiter, Pairs, fit_arbiter, smallest_variance

SPREADS = (0.0, 0.35, 0.7, 1.4)  # prior deviations of the groups' trust to average over; 0: one trust for all groups
# Prior deviation of the trusts: that of verdicts is narrower, and would stop a session because it is sure of itself.
DEVIATION = 1.0
TOLERANCE = 0.005
AUDIT = 8
NEARLY = 0.9  # random pairs are asked where they are expected to gain this share of what chosen ones do
HORIZONS = (1, 2, 4, 8)  # batches to look ahead: labels may be worth something together and nothing alone
NOISE = 8 / math.pi  # variance of the latent Gaussian noise that stands for the logistic one
NODES, NODE_WEIGHTS = (values / 2 for values in np.polynomial.legendre.leggauss(16))  # on (-1/2, 1/2)


@dataclass(frozen=True)
class Step:
    """What to do after the labels so far.

    Attributes:
        action: `audit` (random pairs, before anything is believed), `conflict` (the pairs in `chosen`), `random`, or
            `stop`.
        chosen: positions of the candidates to ask, for `conflict`.
        labels: labels so far.
        accuracy: expected accuracy over the pool of the `arbiter`, of the `reward model` and of the `policy`.
        gains: expected gain of accuracy by another batch, for `conflict` and `random`.
        tolerance: smallest gain for which labels are asked.
        not_asked: labels that the budget still allows.
    """

    action: str
    chosen: list[int]
    labels: int
    accuracy: dict[str, float]
    gains: dict[str, float]
    tolerance: float
    not_asked: int

    def text(self) -> str:
        """Says on one line what is believed and what to do."""
        if self.action == "audit":
            return f"{self.labels} labels: too few to judge by; ask about random pairs"
        right = ", ".join(f"{source} {share:.3f}" for source, share in self.accuracy.items())
        best = max(self.gains.values(), default=0.0)
        believed = f"{self.labels} labels; expected accuracy: {right}; another batch is expected to add {best:.4f}"
        if self.action == "stop":
            why = f"less than {self.tolerance:g}" if self.not_asked else "the budget is spent"
            return f"{believed}: stop, {why}; {self.not_asked} labels not asked for"
        return f"{believed}: ask about {'random pairs' if self.action == 'random' else 'the chosen pairs'}"


def next_step(
    labelled: Pairs,
    first_is_better: np.ndarray,
    pool: Pairs,
    candidates: Pairs,
    *,
    batch: int,
    left: int,
    prompts: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
    trust: tuple[float, float] = PRIOR_TRUST,
    audit: int = AUDIT,
    tolerance: float = TOLERANCE,
) -> Step:
    """Decides whether to ask for another batch of labels, and about which pairs.

    Until there are `audit` labels, it asks about random pairs. Then it asks while some number of batches, up to eight,
    is expected to gain at least `tolerance` of accuracy per batch. It asks about random pairs where they gain nearly as
    much as chosen ones, because random labels also measure.

    Args:
        labelled: the pairs with labels. Their groups may have a trust of their own.
        first_is_better: see `fit_arbiter`.
        pool: the pairs whose verdicts count, or a random sample of them.
        candidates: pairs that may be asked.
        batch: labels per batch.
        left: labels that the budget still allows.
        prompts: the prompt of each candidate, see `smallest_variance`.
        weights: weight of each label, see `fit_arbiter`.
        trust: prior means of the trust in the reward model and in the policy.
        audit: number of labels about random pairs to begin with.
        tolerance: smallest gain of accuracy per batch that is worth a batch.
    """
    left = min(left, len(candidates))
    if len(labelled) < audit and left:
        return Step("audit", [], len(labelled), {}, {}, tolerance, left)
    believed = beliefs(labelled, first_is_better, pool, weights=weights, trust=trust)
    accuracy = {
        source: sum(share * _accuracy(arbiter, pool, gap) for share, arbiter in believed)
        for source, gap in (("arbiter", None), ("reward model", pool.reward_gap), ("policy", pool.policy_gap))
    }
    if not left:
        return Step("stop", [], len(labelled), accuracy, {}, tolerance, 0)
    counts = [k * batch for k in HORIZONS if k * batch <= left] or [left]
    _, designer = max(believed, key=lambda belief: (belief[1].spread > 0, belief[0]))
    features = designer.features(pool)
    moment = features.T @ features / len(features)
    chosen = smallest_variance(designer, candidates, moment, counts[-1], take_turns=prompts)
    gains = {"conflict": 0.0, "random": 0.0}
    for count in counts:
        for kind in gains:
            gain = sum(
                share * expected_gain(arbiter, pool, _after(arbiter, candidates, kind, chosen[:count]))
                for share, arbiter in believed
            )
            gains[kind] = max(gains[kind], gain * min(batch, left) / count)
    action = "random" if gains["random"] >= NEARLY * gains["conflict"] else "conflict"
    if gains[action] < tolerance:
        action = "stop"
    return Step(action, chosen[:batch] if action == "conflict" else [], len(labelled), accuracy, gains, tolerance, left)


def beliefs(
    labelled: Pairs,
    first_is_better: np.ndarray,
    pool: Pairs,
    *,
    weights: np.ndarray | None = None,
    trust: tuple[float, float] = PRIOR_TRUST,
) -> list[tuple[float, Arbiter]]:
    """Fits an arbiter for each spread of the groups' trust, and returns them with their posterior probabilities.

    All spreads are equally likely before. Every group of the pool has a term, also one without labels. With a single
    group there is one arbiter.
    """
    groups = sorted(set(pool.group.tolist()))
    spreads = SPREADS if len(groups) > 1 else SPREADS[:1]
    fit = partial(fit_arbiter, labelled, first_is_better, weights=weights, groups=groups, trust=trust)
    fits = [fit(spread=spread, deviation=DEVIATION) for spread in spreads]
    evidence = np.array([arbiter.evidence for arbiter in fits])
    shares = np.exp(evidence - evidence.max())
    return list(zip((shares / shares.sum()).tolist(), fits, strict=True))


def expected_gain(arbiter: Arbiter, pool: Pairs, covariance: np.ndarray) -> float:
    """Returns the expected gain in accuracy of the arbiter's verdicts if labels shrink its covariance to this one.

    Args:
        arbiter: the posterior now.
        pool: the pairs whose verdicts count.
        covariance: the posterior covariance after the labels, shape (2 + G, 2 + G).
    """
    from scipy.special import ndtr, ndtri

    features = arbiter.features(pool)
    mean = features @ arbiter.mean
    now = np.einsum("ij,jk,ik->i", features, arbiter.covariance, features)
    later = np.minimum(np.einsum("ij,jk,ik->i", features, covariance, features), now)
    deviation = np.sqrt(np.maximum(now - later, 1e-12))
    # E Phi(|u| / ...) by Gauss-Legendre over the quantiles of u, below and above 0, where the integrand is smooth.
    negative = ndtr(-mean / deviation)
    expected = np.zeros(len(mean))
    for low, size in ((np.zeros_like(negative), negative), (negative, 1 - negative)):
        quantiles = low[:, None] + size[:, None] * (NODES + 0.5)
        u = mean[:, None] + deviation[:, None] * ndtri(np.clip(quantiles, 1e-12, 1 - 1e-12))
        expected += size * (ndtr(np.abs(u) / np.sqrt(NOISE + later)[:, None]) @ NODE_WEIGHTS)
    return float((expected - ndtr(np.abs(mean) / np.sqrt(NOISE + now))).mean())


def _accuracy(arbiter: Arbiter, pool: Pairs, gap: np.ndarray | None) -> float:
    """Returns the expected accuracy of verdicts by the sign of a gap, or of the arbiter's own."""
    from scipy.special import ndtr

    features = arbiter.features(pool)
    mean = features @ arbiter.mean
    variance = np.einsum("ij,jk,ik->i", features, arbiter.covariance, features)
    sign = np.sign(mean if gap is None else gap)
    return float(ndtr(sign * mean / np.sqrt(NOISE + variance)).mean())


def _after(arbiter: Arbiter, candidates: Pairs, kind: str, chosen: Sequence[int]) -> np.ndarray:
    """Returns the posterior covariance after labels about these candidates, or about as many random ones."""
    features = arbiter.features(candidates)
    information = 0.25 / np.cosh(features @ arbiter.mean / 2) ** 2
    if kind == "random":
        information *= len(chosen) / len(features)
    else:
        features, information = features[chosen], information[chosen]
    precision = np.linalg.inv(arbiter.covariance) + (features * information[:, None]).T @ features
    return np.linalg.inv(precision)
