"""Reward model metrics on labelled pairs: accuracy with an interval, calibration, loss."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shfcas.data.messages import completion_message
from shfcas.data.preferences import Preference
from shfcas.rewards.calls import call_reward
from shfcas.rewards.scorers import RewardScorer
from shfcas.utils.statistics import wilson_interval

BINS = 10


def accuracy(differences: np.ndarray) -> dict[str, Any]:
    """Returns the fraction of pairs with a positive difference, chosen minus rejected; a tie counts half."""
    return wilson_interval(float((differences > 0).sum() + 0.5 * (differences == 0).sum()), len(differences))


def calibration(differences: np.ndarray) -> dict[str, Any]:
    """Computes the calibration of a reward model: reliability in equal bins, and the expected calibration error.

    Under Bradley-Terry, a model whose preferred answer leads by d is right with probability sigmoid(d). This
    confidence lies in [0.5, 1]. A calibrated model is right on 80 % of the pairs with a confidence of 80 %.

    Args:
        differences: reward of the chosen answer minus reward of the rejected one, shape (n,).

    Returns:
        `expected_error`, the mean over pairs of |accuracy - confidence| of their bin (Guo et al. 2017,
        arXiv 1706.04599), and `bins`: the non-empty bins of ten, each with its mean `confidence` and its accuracy
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
    """Computes all reported metrics of a reward model on labelled pairs.

    Args:
        preferences: the pairs; at least one.
        chosen: rewards of their chosen answers.
        rejected: rewards of their rejected answers.

    Returns:
        `accuracy` with its 95 % interval and count, also `by_source` and `by_round`; `ties`, the number of pairs
        with equal rewards (each counts as half correct); `loss`, the mean Bradley-Terry loss with margins;
        `calibration`.
    """
    differences = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    margins = np.array([p.margin or 0.0 for p in preferences])

    def grouped(key: Callable[[Preference], Any]) -> dict[str, Any]:
        names = [key(p) for p in preferences]
        return {
            str(name): accuracy(differences[[n == name for n in names]]) for name in sorted(set(names))
        }  # text keys, as in JSON

    return {
        "accuracy": accuracy(differences),
        "by_source": grouped(lambda p: p.source),
        "by_round": grouped(lambda p: p.round),
        "ties": int((differences == 0).sum()),
        "loss": float(np.logaddexp(0, margins - differences).mean()),
        "calibration": calibration(differences),
    }


def pair_rewards(scorer: RewardScorer, preferences: Sequence[Preference]) -> tuple[list[float], list[float]]:
    """Returns the rewards of the chosen and of the rejected answers; NaN if the reward does not apply."""
    prompts = [p.prompt for p in preferences] * 2
    answers = [completion_message(p.prompt, p.chosen) for p in preferences]
    answers += [completion_message(p.prompt, p.rejected) for p in preferences]
    values = call_reward(scorer, len(answers), {"prompts": prompts, "completions": answers})
    rewards = [math.nan if value is None else value for value in values]
    return rewards[: len(preferences)], rewards[len(preferences) :]


def pair_accuracy(scorer: RewardScorer, preferences: Sequence[Preference]) -> float:
    """Returns the fraction of pairs whose chosen answer has the higher reward; a tie counts half."""
    chosen, rejected = pair_rewards(scorer, preferences)
    return accuracy(np.subtract(chosen, rejected))["mean"]
