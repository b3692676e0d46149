"""How well rewards order judged pairs: accuracy with an interval, calibration, loss; arithmetic on numbers only."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shfcas.preferences import Preference

BINS = 10


def wilson_interval(successes: float, trials: int) -> dict[str, Any]:
    """A share with its 95 % score interval (Wilson 1927), which stays in [0, 1] and holds for few trials too.

    Args:
        successes: how many of them, halves allowed (a tie is half a correct pair).
        trials: of how many; at least 1.

    Returns:
        `mean`, `low`, `high`, and `count`, the trials.

    >>> {name: round(value, 3) for name, value in wilson_interval(8, 10).items()}
    {'mean': 0.8, 'low': 0.49, 'high': 0.943, 'count': 10}
    """
    z = 1.959963984540054
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return {"mean": share, "low": max(0.0, centre - half), "high": min(1.0, centre + half), "count": trials}


def accuracy(differences: np.ndarray) -> dict[str, Any]:
    """Share of pairs with a positive difference, chosen less rejected; a tie counts half."""
    return wilson_interval(float((differences > 0).sum() + 0.5 * (differences == 0).sum()), len(differences))


def calibration(differences: np.ndarray) -> dict[str, Any]:
    """Whether a reward model is right as often as it says: reliability in equal bins, and the expected error.

    Under Bradley-Terry a model that gives its preferred answer a lead of d is right with probability sigmoid(d).
    That confidence lies in [0.5, 1]; a calibrated model is right on 80 % of the pairs that it is 80 % sure of.

    Args:
        differences: reward of the chosen answer less that of the rejected one, shape (n,).

    Returns:
        `expected_error`, the mean over pairs of |accuracy - confidence| of their bin (Guo et al. 2017,
        arXiv 1706.04599), and `bins`: the non-empty ones of ten, each with its mean `confidence` and its accuracy
        with an interval.
    """
    confidence = 1 / (1 + np.exp(-np.abs(differences)))
    number = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [
        {"confidence": float(confidence[number == k].mean()), **accuracy(differences[number == k])}
        for k in sorted(set(number.tolist()))
    ]
    error = sum(b["count"] * abs(b["mean"] - b["confidence"]) for b in bins) / len(differences)
    return {"expected_error": float(error), "bins": bins}


def pair_report(
    preferences: Sequence[Preference], chosen: Sequence[float], rejected: Sequence[float]
) -> dict[str, Any]:
    """Everything that is reported about a reward model on judged pairs.

    Args:
        preferences: the pairs; at least one.
        chosen: rewards of their chosen answers.
        rejected: rewards of their rejected answers.

    Returns:
        `accuracy` with its 95 % interval and count, also `by_source` and `by_round`; `ties`, pairs of equal rewards
        (half of each is counted as correct); `loss`, the mean Bradley-Terry loss less the margins; `calibration`.
    """
    differences = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    margins = np.array([p.margin or 0.0 for p in preferences])

    def grouped(key: Callable[[Preference], Any]) -> dict[str, Any]:
        names = [key(p) for p in preferences]
        return {
            str(name): accuracy(differences[[n == name for n in names]]) for name in sorted(set(names))
        }  # text, as JSON has it

    return {
        "accuracy": accuracy(differences),
        "by_source": grouped(lambda p: p.source),
        "by_round": grouped(lambda p: p.round),
        "ties": int((differences == 0).sum()),
        "loss": float(np.logaddexp(0, margins - differences).mean()),
        "calibration": calibration(differences),
    }
