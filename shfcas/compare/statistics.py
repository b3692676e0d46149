"""Statistics of a comparison: means with intervals over seeds, and paired tests against the baseline."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from shfcas.evaluation.statistics import t_interval

Row = dict[str, Any]


class Key(NamedTuple):
    """Metric and group of prompts (an empty group: all prompts)."""

    metric: str
    group: str = ""


def values_of(rows: Iterable[Row], key: Key) -> dict[tuple[str, int], dict[int, float]]:
    """Returns the values of one metric, per strategy and budget, by seed; values that are not finite are omitted."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        if (row["metric"], row["group"]) == key and np.isfinite(row["value"]):
            found.setdefault((row["strategy"], row["budget"]), {})[row["seed"]] = row["value"]
    return found


def keys_of(rows: Iterable[Row]) -> list[Key]:
    """Returns every metric and group, in order of first appearance."""
    return list(dict.fromkeys(Key(row["metric"], row["group"]) for row in rows))


def curves(rows: Sequence[Row], key: Key) -> list[Row]:
    """Computes the mean over seeds with Student's 95 % interval, for each strategy and budget.

    Returns:
        Rows with `strategy`, `budget`, `metric`, `group`, `mean`, `low`, `high`, `seeds`. A single seed has no
        interval: `low` and `high` are NaN.
    """
    found = []
    for (strategy, budget), by_seed in values_of(rows, key).items():
        values = [by_seed[seed] for seed in sorted(by_seed)]
        found.append(
            {
                "strategy": strategy,
                "budget": budget,
                **key._asdict(),
                **t_interval(values),
                "seeds": len(values),
            }
        )
    return found


def paired_tests(rows: Sequence[Row], key: Key, baseline: str) -> list[Row]:
    """Tests each strategy against the baseline at the same budget, paired by seed.

    Wilcoxon's signed-rank test (1945), two-sided, exact for few seeds without ties, without zeros. P-values are
    corrected over all strategies and budgets of this metric by Holm's method (1979).

    Returns:
        Rows with `strategy`, `budget`, `metric`, `group`; the mean `difference` with Student's 95 % interval over
        seeds (`low`, `high`; NaN for a single seed); the numbers of seeds that are `better`, `worse`, and in total
        (`seeds`); `p` and `p_holm`. The arm without labels is compared with the baseline at each budget.
    """
    found = values_of(rows, key)
    tests = []
    for budget in sorted({budget for name, budget in found if name == baseline}):
        base = found[baseline, budget]
        arms = {name: by_seed for (name, at), by_seed in found.items() if at in (budget, 0) and name != baseline}
        for name, by_seed in sorted(arms.items()):
            both = sorted(base.keys() & by_seed.keys())
            if not both:
                continue
            difference = np.array([by_seed[seed] - base[seed] for seed in both])
            interval = t_interval(difference.tolist())
            tests.append(
                {
                    "strategy": name,
                    "budget": budget,
                    **key._asdict(),
                    "difference": interval["mean"],
                    "low": interval["low"],
                    "high": interval["high"],
                    "better": int((difference > 0).sum()),
                    "worse": int((difference < 0).sum()),
                    "seeds": len(both),
                    "p": signed_rank(difference),
                }
            )
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return tests


def signed_rank(differences: Sequence[float] | np.ndarray) -> float:
    """Computes the two-sided p-value of Wilcoxon's signed-rank test that differences are symmetric around 0.

    Zeros are omitted; the result is 1 if all are zero. Up to 50 differences without ties, the p-value is exact.

    >>> signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # 2 / 2**6, the minimum for six differences
    0.03125
    """
    from scipy.stats import wilcoxon

    values = np.asarray(differences, float)
    values = values[values != 0]
    return float(wilcoxon(values).pvalue) if len(values) else 1.0


def holm(pvalues: Sequence[float]) -> list[float]:
    """Corrects p-values for multiple tests, which bounds the probability of any false rejection (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, most = [0.0] * len(pvalues), 0.0
    for rank, i in enumerate(np.argsort(pvalues, kind="stable").tolist()):
        most = max(most, min(1.0, (len(pvalues) - rank) * pvalues[i]))
        corrected[i] = most
    return corrected
