"""Bootstrap intervals over prompts, Student's over seeds, and the area under the ROC curve."""

from collections.abc import Sequence

import numpy as np

from shfcas.evaluation.resampling import weighted_auroc

BOOTSTRAP_SAMPLES = 2000


def bootstrap_interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Computes the percentile bootstrap interval of the mean of independent values (one per prompt).

    The interval of a single value is the value. Without values, and with a NaN among them, it is NaN.
    """
    # scipy.stats.bootstrap (1.17) happens to draw the same resamples and differs in the last digit only. But it does
    # not promise its draws, on which committed tables depend; it refuses a single value, and takes twice as long
    # for 50 values.
    array = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (BOOTSTRAP_SAMPLES, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_with_interval(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean over prompts with its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def t_interval(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """Returns the mean of a few independent values, such as one per seed, with Student's interval.

    The percentile bootstrap of ten values covers too little. A single value has no interval: `low` and `high` are NaN.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return {"mean": mean, "low": float("nan"), "high": float("nan")}
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Computes the area under the ROC curve: how often a positive has the higher score; ties count half.

    A NaN score ranks last for a positive and first for a negative. The area is NaN without positives or negatives.

    >>> auroc([0.9, 0.8, 0.1], [True, False, False])
    1.0
    """
    values, positive = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    values = np.where(np.isnan(values), np.where(positive, -np.inf, np.inf), values)
    return float(weighted_auroc(values, positive)(np.ones(len(values))))
