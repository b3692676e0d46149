"""Metrics of a policy on held-out prompts: gold and proxy reward, win rate, KL, conflict."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shfcas.data.candidates import CandidateTable
from shfcas.evaluation.statistics import auroc, mean_with_interval
from shfcas.utils.errors import UserError


def win_rate(gold: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> list[float]:
    """Returns for each prompt how often an answer beats one of the previous policy (all pairs; ties count half)."""
    rates = []
    for new, old in zip(gold, before, strict=True):
        difference = np.asarray(new)[:, None] - np.asarray(old)[None, :]
        rates.append(float(((difference > 0) + 0.5 * (difference == 0)).mean()))
    return rates


def ranking_accuracy(rewards: Sequence[float], gold: Sequence[float]) -> float:
    """Returns the share of a prompt's answer pairs that rewards order as gold does; a tie of rewards counts half.

    Pairs with equal gold are left out; NaN if all are equal.

    >>> ranking_accuracy([0.1, 0.9, 0.5], [1.0, 2.0, 3.0])
    0.6666666666666666
    """
    reward, truth = np.asarray(rewards, dtype=float), np.asarray(gold, dtype=float)
    better = truth[:, None] > truth[None, :]
    if not better.any():
        return float("nan")
    difference = (reward[:, None] - reward[None, :])[better]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def z_scores(values: Sequence[float]) -> np.ndarray:
    """Returns z-scores with the population deviation; zeros if the deviation is below 1e-6."""
    array = np.asarray(values, dtype=float)
    std = array.std()
    return (array - array.mean()) / std if std >= 1e-6 else np.zeros_like(array)


def detection(candidates: CandidateTable, gold: Sequence[Sequence[float]], bound: float = 1.0) -> dict[str, float]:
    """Measures how well conflict finds the reward model's errors, given gold rewards (a diagnosis outside the loop).

    Args:
        candidates: a table with rewards and conflict columns. Degenerate prompts are left out.
        gold: gold rewards, one list per prompt. Prompts with constant gold are left out.
        bound: largest difference of z-scored reward and z-scored gold that is no error.

    Returns:
        `pacs_auroc`: how well abs(PACS) finds answers whose reward is wrong by more than `bound`. `kendall_auroc`:
        how well a prompt's Kendall distance finds prompts whose rewards correlate negatively with gold.
    """
    wrong, pacs, inverted, distance = [], [], [], []
    for row, g in zip(candidates.rows(), gold, strict=True):
        reward_z, gold_z = z_scores(row["rewards"]), z_scores(g)
        if row["degenerate"] or not gold_z.any():
            continue
        wrong += list(np.abs(reward_z - gold_z) > bound)
        pacs += [abs(p) for p in row["pacs"]]
        inverted.append(float((reward_z * gold_z).mean()) < 0)
        distance.append(row["kendall_distance"])
    return {"pacs_auroc": auroc(pacs, wrong), "kendall_auroc": auroc(distance, inverted)}


def summarize(
    candidates: CandidateTable,
    gold: Sequence[Sequence[float]] | None,
    before: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Computes the metrics of a policy from a table of its answers.

    Args:
        candidates: a table with rewards, conflict columns if they were measured and, for the KL, `base_logprobs`
            (without it, the policy is the base).
        gold: gold rewards, one list per prompt; None leaves out gold reward and win rate.
        before: gold rewards of the previous policy, for the win rate.

    Returns:
        `gold_reward` and `proxy_reward` (mean, low, high over prompts), `win_rate`, `kl` (mean over answers of
        log pi - log pi_base, in nats), `kendall_distance`, `mean_abs_pacs`, `mean_length`, `finished`.
    """
    tokens = candidates.column("num_tokens")
    metrics: dict[str, Any] = {
        "prompts": len(candidates),
        "answers": sum(map(len, tokens)),
        **({} if gold is None else {"gold_reward": mean_with_interval([float(np.mean(g)) for g in gold])}),
        "proxy_reward": mean_with_interval([float(np.mean(r)) for r in candidates.column("rewards")]),
        **{
            name: float(np.nanmean(candidates.column(name)))
            for name in ("kendall_distance", "mean_abs_pacs")
            if name in candidates
        },
        "mean_length": float(np.mean([t for row in tokens for t in row])),
        "finished": float(np.mean([f for row in candidates.column("finished") for f in row])),
    }
    if gold is not None and before is not None:
        metrics["win_rate"] = mean_with_interval(win_rate(gold, before))
    metrics["kl"] = 0.0
    if "base_logprobs" in candidates:
        metrics["kl"] = float((candidates.values("logprobs") - candidates.values("base_logprobs")).mean())
    return metrics


def grouped(rows: Sequence[dict[str, Any]], column: str) -> dict[str, list[int]]:
    """Returns the positions of the rows by the value of a column.

    Raises:
        UserError: a row lacks the column.
    """
    groups: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        if column not in row:
            raise UserError(f"evaluation.group_by: expected a column of the prompts, got {column}")
        groups.setdefault(str(row[column]), []).append(position)
    return groups
