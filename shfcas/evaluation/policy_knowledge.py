"""What each policy score knows: how it agrees with judges, and how well its conflicts find reward model errors.

A conflict with the policy means something only where the policy's score knows something about what people want. This
is measured on judged pairs, for every score that a table has and for each wording of a contrast, and one score is
recommended by a rule that is fixed in advance.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from shfcas.conflicts.columns import SCORE_COLUMNS, policy_scores
from shfcas.data.candidates import arrow_columns
from shfcas.evaluation.judged_pairs import JudgedSample, Row
from shfcas.evaluation.metrics import z_scores
from shfcas.evaluation.resampling import Resampled, weighted_auroc, with_interval
from shfcas.ops.functional import conflict_scores
from shfcas.sampling.contrast import PREFIX

PLAIN = {
    "logprob": "log-probability",
    "mean_logprob": "log-probability per token",
    "logprob_ratio": "log(policy / reference)",
}
MIN_PROMPTS = 20  # with fewer, the bootstrap's intervals are too short
ERROR_RATE, POWER, TARGET = 0.05, 0.8, 0.6
BIAS = "biased: the reward model learned from these pairs; they share its errors"
UNKNOWN = {"value": None, "low": None, "high": None}


def measure_scores(
    sample: JudgedSample,
    *,
    principles: Mapping[str, Sequence[str]] | None = None,
    group_by: str | None = None,
    uncovered: Collection[str] = (),
    original: JudgedSample | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures every available policy score on judged pairs, and recommends one by rule.

    Available are `logprob`, `mean_logprob` and `logprob_ratio` where the rows have their columns, each wording of a
    contrast alone (`contrast_<hash>`), and, of several wordings, their mean `contrast`.

    Each score's `agreement` is the share of pairs that it orders as the judges do; a tie counts half, and pairs
    without a finite score are left out. All intervals are percentile bootstraps over prompts. Their `level` is
    1 - 0.05 / m for m scores (Bonferroni), so that the best of many is not mistaken for a finding.

    The rule: of the scores whose interval of the agreement lies above 0.5, the one of highest agreement is
    recommended; of equal ones, the first. None is recommended with fewer than 20 prompts.

    Args:
        sample: judged pairs, drawn at random or by gold, as `JudgedPairs.sample` holds them. Rows may have `rewards`
            and `gold`.
        principles: for each column of contrasts the two instructions, as a table's metadata has them.
        group_by: column of the groups in `uncovered`.
        uncovered: groups that the reward model was not trained on.
        original: pairs that the reward model was trained on. They are measured too, and never change the
            recommendation.
        seed: seed of the intervals.

    Returns:
        A dictionary with

        - `verdict`, one sentence, and `recommended`: the name of a score, or None;
        - `level` of all intervals;
        - `scores`: for each score

            - `label`, `pairs`, `prompts`, `agreement`, and its `design_effect`, see `design_effect`;
            - `correlation` with gold within prompts: the mean over prompts of mean(z(score) z(gold));
            - `finds_errors`: the AUROC with which the score's Kendall distance finds pairs that the reward model
              orders wrongly;
            - `finds_uncovered`: the AUROC with which it finds prompts of uncovered groups;
            - `behind`: by how much the recommended score's agreement is higher.

          Values have intervals; what is not known is None;
        - `reward_model`: its own agreement and correlation, for scale;
        - `indistinguishable`: scores whose interval of `behind` does not lie above 0;
        - `needed`: without a recommendation, how many judged pairs of how many prompts would tell, with as many pairs
          per prompt as now, see `pairs_needed`: for the best score's agreement as it is estimated, and for 0.6;
        - `original`: `scores`, `reward_model` and `level` on the original pairs, and their `bias`; None without them.
    """
    found, resamples = _measure(sample, principles or {}, group_by, uncovered, seed)
    scores, level = found["scores"], found["level"]
    sure = [n for n, score in scores.items() if score["prompts"] >= MIN_PROMPTS and _is_above(score["agreement"], 0.5)]
    recommended = max(sure, key=lambda name: _value(scores[name]), default=None)
    indistinguishable = []
    if recommended:
        for name in scores.keys() - {recommended}:
            ahead = _value(scores[recommended]) - _value(scores[name])
            scores[name]["behind"] = with_interval(ahead, resamples[recommended] - resamples[name], level)
        indistinguishable = [n for n, score in scores.items() if n != recommended and not _is_above(score["behind"], 0)]
    best = max(scores, key=lambda name: _value(scores[name], -1.0), default=None)
    needed = _needed(scores[best], len(scores)) if best and not recommended else []
    verdict = _recommendation(scores, recommended, indistinguishable) if recommended else _nothing(scores, best, needed)
    return {
        "verdict": verdict,
        "recommended": recommended,
        **found,
        "indistinguishable": indistinguishable,
        "needed": needed,
        "original": original and {"bias": BIAS, **_measure(original, principles or {}, None, (), seed)[0]},
    }


def pairs_needed(agreement: float, scores: int, effect: float = 1.0) -> int:
    """Returns how many judged pairs find with 80 % probability that an agreement is not chance.

    By the normal approximation, the corrected interval of an agreement a over n pairs lies above 0.5 with
    probability 0.8 if

        n = effect * a (1 - a) * ((z_alpha + z_beta) / (a - 0.5))^2

    with z_alpha the quantile of the normal distribution at 1 - 0.025 / scores, and z_beta that at 0.8.

    Args:
        agreement: true agreement, above 0.5.
        scores: number of scores that are tried.
        effect: design effect of several pairs per prompt, see `design_effect`.
    """
    z = NormalDist().inv_cdf(1 - ERROR_RATE / 2 / scores) + NormalDist().inv_cdf(POWER)
    return math.ceil(effect * agreement * (1 - agreement) * (z / (agreement - 0.5)) ** 2)


def design_effect(values: np.ndarray, prompts: np.ndarray) -> float:
    """Returns by how much the pairs of a prompt going together raises the variance of a mean; at least 1.

    The variance of the mean over n pairs of K prompts is K / (K - 1) sum_k (sum of prompt k's deviations)^2 / n^2. It
    is divided by the variance of independent pairs, sum of squared deviations / n^2.

    Args:
        values: shape (n,).
        prompts: index of each value's prompt, shape (n,).
    """
    deviations = values - (values.mean() if len(values) else 0.0)
    sums = np.bincount(np.unique(prompts, return_inverse=True)[1], deviations)
    independent = float((deviations**2).sum())
    if len(sums) < 2 or independent == 0:
        return 1.0
    return max(1.0, len(sums) / (len(sums) - 1) * float((sums**2).sum()) / independent)


# Measures


class _Score(NamedTuple):
    """A score that some rows have.

    Attributes:
        label: what it is.
        columns: columns that it reads.
    """

    label: str
    columns: tuple[str, ...]


class _Values(NamedTuple):
    """Values of a score.

    Attributes:
        answers: one array per row; None for rows without the score.
        right: of each pair 1 if the better answer has the higher value, 0.5 for a tie, 0, or NaN where unknown.
    """

    answers: Sequence[np.ndarray | None]
    right: np.ndarray


def _measure(
    sample: JudgedSample,
    principles: Mapping[str, Sequence[str]],
    group_by: str | None,
    uncovered: Collection[str],
    seed: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measures all scores; returns the results, and the resampled agreement of each score."""
    rows, available = sample.rows, _available(sample.rows, principles)
    level, resampled = 1 - ERROR_RATE / max(len(available), 1), Resampled(sample.prompts, seed)
    rewards = _values(sample, [_numbers(row.get("rewards")) for row in rows])
    judged = np.isin(rewards.right, (0.0, 1.0))
    groups = np.array([str(row.get(group_by or "")) in uncovered for row in rows])
    scores, resamples = {}, {}
    for name, score in available.items():
        values = _values(sample, _answers(rows, score.columns, "contrast" if name not in PLAIN else name))
        measured, resamples[name] = _knowledge(sample, values, resampled, level)
        distances = _distances(rewards.answers, values.answers)
        known = np.isfinite(distances)
        errors, prompts = judged & known[sample.prompts], np.arange(len(rows))
        groups_known = known if uncovered else np.zeros_like(known)
        scores[name] = {
            "label": score.label,
            **measured,
            "finds_errors": _auroc(distances, rewards.right == 0, sample.prompts, errors, level, seed),
            "finds_uncovered": _auroc(distances, groups, prompts, groups_known, level, seed),
            "behind": dict(UNKNOWN),
        }
    own, _ = _knowledge(sample, rewards, resampled, level)
    return {"level": level, "scores": scores, "reward_model": own}, resamples


def _available(rows: Sequence[Row], principles: Mapping[str, Sequence[str]]) -> dict[str, _Score]:
    """Returns the scores whose columns some row has."""

    def has(columns: Sequence[str]) -> bool:
        return any(all(row.get(column) is not None for column in columns) for row in rows)

    found = {name: _Score(label, SCORE_COLUMNS[name]) for name, label in PLAIN.items() if has(SCORE_COLUMNS[name])}
    names = sorted({name for row in rows for name in row if name.startswith(PREFIX)})
    wordings = [name for name in [*principles, *(n for n in names if n not in principles)] if has([name])]
    for name in wordings:
        found[name] = _Score(_shortened(principles[name][0]) if name in principles else "unknown wording", (name,))
    if len(wordings) > 1 and has(wordings):
        found["contrast"] = _Score(f"mean of {len(wordings)} wordings", tuple(wordings))
    return found


def _shortened(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _answers(rows: Sequence[Row], columns: Sequence[str], policy_score: str) -> list[np.ndarray | None]:
    """Returns a policy score of each row's answers; None for a row that lacks a column."""
    has = [all(row.get(column) is not None for column in columns) for row in rows]
    kept = [{column: row[column] for column in columns} for row, complete in zip(rows, has, strict=True) if complete]
    found = policy_scores(pa.RecordBatch.from_pydict(arrow_columns(kept)), policy_score, "judged sample")
    parts = iter(np.split(found.values.double().numpy(), found.offsets[1:-1].numpy()))
    return [next(parts) if complete else None for complete in has]


def _numbers(values: Sequence[float | None] | None) -> np.ndarray | None:
    return None if values is None else np.array([math.nan if v is None else v for v in values], float)


def _values(sample: JudgedSample, answers: Sequence[np.ndarray | None]) -> _Values:
    """Returns the values of answers with the order of each pair."""

    def right(values: np.ndarray | None, better: int, worse: int) -> float:
        if values is None or np.isnan(values[[better, worse]]).any():
            return math.nan
        return float(values[better] > values[worse]) + 0.5 * float(values[better] == values[worse])

    return _Values(answers, np.array([right(answers[row], better, worse) for row, better, worse in sample.pairs]))


def _knowledge(
    sample: JudgedSample, values: _Values, resampled: Resampled, level: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Measures agreement and correlation of a score; also returns the resampled agreement."""
    known, count = ~np.isnan(values.right), len(sample.rows)
    right, prompts = values.right[known], sample.prompts[known]
    pairs = np.bincount(prompts, minlength=count)
    value, agreement = _rate(np.bincount(prompts, right, count), pairs, resampled)
    together = np.array([_correlation(a, row.get("gold")) for a, row in zip(values.answers, sample.rows, strict=True)])
    correlation = _rate(np.nan_to_num(together), ~np.isnan(together), resampled)
    return {
        "pairs": int(pairs.sum()),
        "prompts": int((pairs > 0).sum()),
        "agreement": with_interval(value, agreement, level),
        "design_effect": design_effect(right, prompts),
        "correlation": with_interval(*correlation, level),
    }, agreement


def _rate(top: np.ndarray, bottom: np.ndarray, resampled: Resampled) -> tuple[float, np.ndarray]:
    """Returns the ratio of two sums over prompts, and that of each resample."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.divide(top.sum(), bottom.sum())), (resampled.draws @ top) / (resampled.draws @ bottom)


def _correlation(values: np.ndarray | None, gold: Sequence[float | None] | None) -> float:
    """Returns mean(z(values) z(gold)) of a prompt; NaN if a number is missing or gold is constant."""
    known = _numbers(gold)
    if values is None or known is None or not (np.isfinite(values).all() and np.isfinite(known).all()):
        return math.nan
    gold_z = z_scores(known.tolist())
    return float((z_scores(values.tolist()) * gold_z).mean()) if gold_z.any() else math.nan


def _distances(rewards: Sequence[np.ndarray | None], scores: Sequence[np.ndarray | None]) -> np.ndarray:
    """Returns each row's Kendall distance; NaN if it is degenerate, or a number is missing or not finite."""
    sides = [
        (place, one, other)
        for place, (one, other) in enumerate(zip(rewards, scores, strict=True))
        if one is not None and other is not None and np.isfinite([one, other]).all()
    ]
    found = np.full(len(rewards), math.nan)
    if sides:
        places, ones, others = zip(*sides, strict=True)
        offsets = torch.tensor([0, *np.cumsum([len(one) for one in ones])])
        flat = (torch.from_numpy(np.concatenate(side)) for side in (ones, others))
        result = conflict_scores(*flat, offsets=offsets)
        found[list(places)] = torch.where(result.degenerate, math.nan, result.kendall_distance).numpy()
    return found


def _auroc(
    distances: np.ndarray, positive: np.ndarray, prompts: np.ndarray, use: np.ndarray, level: float, seed: int
) -> dict[str, float | None]:
    """Returns how well the distances of prompts find the positive items among those in `use`."""
    if not use.any():
        return dict(UNKNOWN)
    measure = weighted_auroc(distances[prompts[use]], positive[use])
    resampled = Resampled(np.unique(prompts[use], return_inverse=True)[1], seed)
    return with_interval(float(measure(np.ones(int(use.sum())))), resampled(measure), level)


# The rule


def _value(score: Mapping[str, Any], otherwise: float = math.nan) -> float:
    value = score["agreement"]["value"]
    return otherwise if value is None else float(value)


def _is_above(interval: Mapping[str, float | None], bound: float) -> bool:
    return interval["low"] is not None and interval["low"] > bound


def _needed(score: Mapping[str, Any], tried: int) -> list[dict[str, Any]]:
    """Returns the number of pairs that would tell, for the estimated and for the target agreement."""
    if not score["pairs"]:
        return []
    per_prompt, found = score["pairs"] / score["prompts"], []
    for agreement in dict.fromkeys((_value(score), TARGET)):
        if agreement <= 0.5:
            continue
        pairs = pairs_needed(agreement, tried, score["design_effect"])
        prompts = max(MIN_PROMPTS, math.ceil(pairs / per_prompt))
        pairs = math.ceil(prompts * per_prompt)
        found.append(
            {
                "agreement": agreement,
                "pairs": pairs,
                "prompts": prompts,
                "more_pairs": max(0, pairs - score["pairs"]),
                "more_prompts": max(0, prompts - score["prompts"]),
            }
        )
    return found


def _described(name: str, score: Mapping[str, Any]) -> str:
    if name.startswith(PREFIX):
        return f'policy_score contrast with the wording "{score["label"]}" alone ({name})'
    return f"policy_score {name} ({score['label']})"


def interval_text(found: Mapping[str, float | None] | None) -> str:
    """Formats a value with its interval; `-` if there is none."""
    if found is None or found["value"] is None:
        return "-"
    return f"{found['value']:z.2f} [{found['low']:z.2f}, {found['high']:z.2f}]"


def _agreement(score: Mapping[str, Any]) -> str:
    return f"{interval_text(score['agreement'])} of {score['pairs']} judged pairs"


def _recommendation(scores: Mapping[str, Any], name: str, indistinguishable: Sequence[str]) -> str:
    text = f"use {_described(name, scores[name])}: it orders {_agreement(scores[name])} as the judges do"
    return f"{text}; logprob is not clearly worse" if "logprob" in indistinguishable else text


def _nothing(scores: Mapping[str, Any], best: str | None, needed: Sequence[Mapping[str, Any]]) -> str:
    if best is None or not scores[best]["pairs"]:
        return "no policy score can be measured: the table has no column logprobs or contrast_*"
    score = scores[best]
    text = f"no policy score is known to know anything: the best, {best}, orders {_agreement(score)} as the judges do"
    if score["prompts"] < MIN_PROMPTS:
        text += f"; there are {score['prompts']} prompts, and at least {MIN_PROMPTS} are needed"
    parts = [
        f"{part['more_pairs']:,} more pairs ({part['more_prompts']:,} more prompts) if its agreement is "
        f"{part['agreement']:.2f}"
        for part in needed
        if part["more_pairs"]
    ]
    text += f"; to tell, judge about {', or '.join(parts)}" if parts else ""
    enough = [part for part in needed if not part["more_pairs"]]
    return f"{text}; an agreement of {enough[-1]['agreement']:.2f} would probably have been found" if enough else text
