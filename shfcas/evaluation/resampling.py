"""How well a number finds errors, with intervals from a bootstrap over prompts: pairs of one prompt go together."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Weighted = Callable[[np.ndarray], np.ndarray]  # weights of the pairs to one or several numbers
SAMPLES = 1000


class Resampled:
    """The same resamples of prompts for everything that is measured, so that differences are paired.

    Args:
        prompts: the number of each pair's prompt, shape (n,).
        seed: of the draws.
        samples: how many.
    """

    def __init__(self, prompts: np.ndarray, seed: int = 0, samples: int = SAMPLES) -> None:
        self.prompts, count = prompts, int(prompts.max()) + 1
        rng = np.random.default_rng(seed)
        self.draws = rng.multinomial(count, np.full(count, 1 / count), samples).astype(np.int32)

    def __call__(self, measure: Weighted) -> np.ndarray:
        """The measure on each resample, shape (samples,) or (samples, k)."""
        return np.array([measure(draw[self.prompts].astype(float)) for draw in self.draws])


def with_interval(value: float, resampled: np.ndarray, level: float = 0.95) -> dict[str, float | None]:
    """A value with its percentile interval; what is not a number is left out, and None where nothing else is there."""
    known = resampled[np.isfinite(resampled)]
    if not len(known) or not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def weighted_auroc(scores: np.ndarray, positive: np.ndarray) -> Weighted:
    """The area under the ROC curve for any weights of the pairs; ties count half, NaN where a side is empty.

    Args:
        scores: the higher, the likelier positive, shape (n,).
        positive: shape (n,).
    """
    levels, place = np.unique(scores, return_inverse=True)

    def measure(weights: np.ndarray) -> np.ndarray:
        found = np.bincount(place, weights * positive, len(levels))
        other = np.bincount(place, weights * ~positive, len(levels))
        below = np.cumsum(other) - other
        with np.errstate(invalid="ignore"):
            return (found * (below + other / 2)).sum() / (found.sum() * other.sum())

    return measure


def weighted_precision(scores: np.ndarray, wrong: np.ndarray, shares: Sequence[float]) -> Weighted:
    """The share of errors among the pairs with the highest scores, for several shares of all pairs.

    Of pairs with equal scores at the border, each counts in part, as if they were drawn at random.
    """
    levels, place = np.unique(-scores, return_inverse=True)

    def measure(weights: np.ndarray) -> np.ndarray:
        total = np.bincount(place, weights, len(levels))
        errors = np.bincount(place, weights * wrong, len(levels))
        wanted = np.asarray(shares)[:, None] * total.sum()
        before = (np.cumsum(total) - total)[None, :]
        taken = np.clip(wanted - before, 0, total[None, :])
        with np.errstate(invalid="ignore"):
            rate = np.where(total > 0, errors / total, 0.0)
        return (taken * rate).sum(axis=1) / wanted[:, 0]

    return measure


def weighted_rate(wrong: np.ndarray, part: np.ndarray, parts: int) -> Weighted:
    """The share of errors in each of several parts of the pairs; NaN where a part has no weight."""

    def measure(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.bincount(part, weights * wrong, parts) / np.bincount(part, weights, parts)

    return measure


def auroc(scores: np.ndarray, positive: np.ndarray, resampled: Resampled) -> dict[str, Any]:
    """The area under the ROC curve with its 95 % interval."""
    measure = weighted_auroc(scores, positive)
    return with_interval(float(measure(np.ones(len(scores)))), resampled(measure))


def error_rate(wrong: np.ndarray, resampled: Resampled) -> dict[str, Any]:
    """The share of errors with its 95 % interval."""
    measure = weighted_rate(wrong, np.zeros(len(wrong), int), 1)
    return with_interval(float(wrong.mean()), resampled(measure)[:, 0])


def precision(scores: np.ndarray, wrong: np.ndarray, budgets: Sequence[int], resampled: Resampled) -> list[dict]:
    """For each budget: the share of errors among so many pairs of the highest scores, and its lead over all pairs."""
    shares = [budget / len(scores) for budget in budgets]
    measure, rate = weighted_precision(scores, wrong, shares), weighted_rate(wrong, np.zeros(len(wrong), int), 1)
    ones = np.ones(len(scores))
    at, overall, many, rates = measure(ones), float(rate(ones)[0]), resampled(measure), resampled(rate)
    return [
        {
            "budget": budget,
            "errors": with_interval(float(at[i]), many[:, i]),
            "random": overall,
            "lift": with_interval(float(at[i]) - overall, many[:, i] - rates[:, 0]),
        }
        for i, budget in enumerate(budgets)
    ]


def by_decile(scores: np.ndarray, wrong: np.ndarray, resampled: Resampled) -> list[dict[str, Any]]:
    """The share of errors in ten parts of rising score; equal scores stay together, so there may be fewer parts."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, 11)))
    part = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, max(len(edges) - 2, 0))
    numbers, part = np.unique(part, return_inverse=True)
    measure = weighted_rate(wrong, part, len(numbers))
    at, many = measure(np.ones(len(scores))), resampled(measure)
    return [
        {
            "from": float(scores[part == k].min()),
            "to": float(scores[part == k].max()),
            "pairs": int((part == k).sum()),
            "errors": with_interval(float(at[k]), many[:, k]),
        }
        for k in range(len(numbers))
    ]
