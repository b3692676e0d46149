"""Diagnosis on a small judged sample: does conflict find errors of the reward model, before annotators are paid?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from shfcas.evaluation.diagnose_text import format_auroc, format_diagnosis
from shfcas.evaluation.judged_pairs import CONFLICT, NEEDED, SIGNALS, JudgedPairs, from_gold, from_preferences
from shfcas.evaluation.resampling import (
    Resampled,
    auroc,
    by_decile,
    error_rate,
    precision,
    weighted_auroc,
    with_interval,
)
from shfcas.utils.config import Options, option, unexpected
from shfcas.utils.errors import UserError

__all__ = [
    "CONFLICT",
    "NEEDED",
    "SIGNALS",
    "DiagnoseConfig",
    "JudgedPairs",
    "diagnose",
    "format_diagnosis",
    "from_gold",
    "from_preferences",
]

MIN_PROMPTS, MIN_PAIRS = 10, 10  # no verdict with fewer prompts, or fewer right or wrong pairs


@dataclass
class DiagnoseConfig(Options):
    """Diagnosis of how well conflict finds errors of the reward model."""

    group_by: str | None = option(None, "table column to report results by, too (none: no groups)")
    uncovered: list[str] | None = option(
        None,
        "values of group_by that the reward model was not trained on; does conflict find them? (none: not reported)",
    )
    budgets: list[int] = option(
        lambda: [25, 50, 100, 200], "numbers of comparisons for which the share of errors is reported", ge=1
    )
    prompts: int = option(
        100, "prompts to draw where a gold reward judges, and of original pairs that are not in the table", ge=1
    )
    seed: int = option(0, "seed of the draw and of the intervals")

    def check(self) -> None:
        """Checks that uncovered values have a column."""
        if self.uncovered and not self.group_by:
            raise unexpected("group_by", "the column of the values in uncovered", self.group_by)


def diagnose(pairs: JudgedPairs, settings: DiagnoseConfig | None = None) -> dict[str, Any]:
    """Measures how well conflict finds the pairs that the reward model orders wrongly.

    All intervals are 95 % percentile bootstraps over prompts.

    Args:
        pairs: judged pairs of a scored table.
        settings: see `DiagnoseConfig`.

    Returns:
        A dictionary with

        - `verdict`, one sentence, and `informative`: True, False, or None with too little data;
        - `tested`: for each of `CONFLICT` its AUROC with the interval that the verdict compares with 0.5, and its
          `level`; empty with too little data;
        - `pairs`, `prompts`, `errors` (share of wrong pairs), `left_out`;
        - `signals`: for each of `SIGNALS` its `auroc`, its `precision` at each budget beside that at `random`, and
          its `deciles` (calibration);
        - `slices` by group, if `group_by` is set;
        - `uncovered`: the AUROC with which each signal finds pairs of uncovered groups, if `uncovered` is set.

    Raises:
        UserError: there are no pairs.
    """
    settings = settings or DiagnoseConfig()
    if not len(pairs):
        raise UserError("no judged pair is left: all rewards or all gold rewards are equal, or all rows are degenerate")
    resampled = Resampled(pairs.prompts, settings.seed)
    budgets = [budget for budget in settings.budgets if budget <= len(pairs)]
    signals = {
        name: {
            "auroc": auroc(scores, pairs.wrong, resampled),
            "precision": precision(scores, pairs.wrong, budgets, resampled) if budgets else [],
            "deciles": by_decile(scores, pairs.wrong, resampled),
        }
        for name, scores in pairs.signals.items()
    }
    result: dict[str, Any] = {
        **_verdict(pairs, signals, resampled),
        "pairs": len(pairs),
        "prompts": int(pairs.prompts.max()) + 1,
        "errors": error_rate(pairs.wrong, resampled),
        "left_out": pairs.left_out,
        "signals": signals,
    }
    if settings.group_by:
        result["slices"] = _slices(pairs, settings)
    if settings.uncovered:
        unknown = sorted(set(settings.uncovered) - set(pairs.groups))
        if unknown:
            raise UserError(f"uncovered: no judged pair has {settings.group_by} {', '.join(unknown)}")
        inside = np.isin(pairs.groups, settings.uncovered)
        result["uncovered"] = {name: auroc(scores, inside, resampled) for name, scores in pairs.signals.items()}
    return result


def _slices(pairs: JudgedPairs, settings: DiagnoseConfig) -> dict[str, Any]:
    """Measures errors and AUROC per group, and for all covered and all uncovered groups."""
    parts = {name: pairs.groups == name for name in sorted(set(pairs.groups))}
    if settings.uncovered:
        uncovered = np.isin(pairs.groups, settings.uncovered)
        parts = {"(uncovered)": uncovered, "(covered)": ~uncovered} | parts
    slices = {}
    for name, inside in parts.items():
        if not inside.any():
            continue
        prompts = np.unique(pairs.prompts[inside], return_inverse=True)[1]
        resampled, wrong = Resampled(prompts, settings.seed), pairs.wrong[inside]
        slices[name] = {
            "pairs": int(inside.sum()),
            "errors": error_rate(wrong, resampled),
            "auroc": {key: auroc(scores[inside], wrong, resampled) for key, scores in pairs.signals.items()},
        }
    return slices


def _verdict(pairs: JudgedPairs, signals: dict[str, Any], resampled: Resampled) -> dict[str, Any]:
    """Returns the verdict with the intervals it tests; the best conflict signal is reported.

    The conflict signals share the error rate of 5 % (Bonferroni).
    """
    wrong, prompts = int(pairs.wrong.sum()), int(pairs.prompts.max()) + 1
    if prompts < MIN_PROMPTS or min(wrong, len(pairs) - wrong) < MIN_PAIRS:
        counts = f"{prompts} prompts, {len(pairs)} pairs, {wrong} of them wrong"
        verdict = f"too little data ({counts}): judge more pairs, drawn at random"
        return {"informative": None, "verdict": verdict, "tested": {}}
    strict, level = {}, 1 - 0.05 / len(CONFLICT)
    for name in CONFLICT:
        measure = weighted_auroc(pairs.signals[name], pairs.wrong)
        value = float(measure(np.ones(len(pairs))))
        strict[name] = {**with_interval(value, resampled(measure), level), "level": level}
    best = max(strict, key=lambda name: strict[name]["low"] or 0.0)
    result = f"{SIGNALS[best]}, {format_auroc(strict[best])} at a level of {100 * level:.1f} %"
    margin = signals["small_margin"]["auroc"]
    if (strict[best]["low"] or 0.0) > 0.5:
        text = f"conflict finds errors better than chance: {result}"
        if margin["value"] >= signals[best]["auroc"]["value"]:
            text += f"; but small margins of the reward model find them at least as well, {format_auroc(margin)}"
        return {"informative": True, "verdict": text, "tested": strict}
    best = max(strict, key=lambda name: signals[name]["auroc"]["value"])
    result = f"{SIGNALS[best]}, {format_auroc(strict[best])} at a level of {100 * level:.1f} %"
    text = f"no evidence that conflict finds errors (best: {result}): select at random"
    if all((interval["high"] or 1.0) < 0.5 for interval in strict.values()):
        text = f"conflict finds errors worse than chance (best: {result}): select at random"
    if margin["low"] is not None and margin["low"] > 0.5:
        text += f", or by small reward margin, {format_auroc(margin)}"
    return {"informative": False, "verdict": text, "tested": strict}
