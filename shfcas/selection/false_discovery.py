"""Prompts with a Kendall distance above chance, at a given false-discovery rate.

Null hypothesis: reward model and policy order the answers of a prompt independently, without ties. Then every order is
equally likely, and the number of discordant pairs is the number of inversions of a random permutation. The Mahonian
numbers give its distribution. A prompt's p-value is the probability of at least as many discordant pairs. The test is
one-sided, since only a high distance is a conflict. Ties are not discordant, so they reduce the distance and make the
test stricter. The step-up procedure of Benjamini and Hochberg (1995) gives the threshold for the p-values.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

from shfcas.ops._pvalues import distance_pvalue
from shfcas.selection.protocol import Bounds, Row
from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

AUTO = "auto"
Cases = Counter[tuple[int, float]]
LARGEST = "kendall_pvalue"  # key of the bounds: the largest p-value of a selected prompt


def pvalue(answers: int, distance: float) -> float:
    """Returns P(at least this Kendall distance) for unrelated orders of this many answers.

    >>> round(pvalue(3, 2 / 3), 4), pvalue(8, 0.0)
    (0.5, 1.0)
    """
    return _pvalue(answers, round(distance * (answers * (answers - 1) // 2)))


@cache
def _pvalue(answers: int, discordant: int) -> float:
    return float(distance_pvalue(torch.tensor(discordant), torch.tensor(answers)))


def disagrees(row: Row, bounds: Bounds) -> bool:
    """Returns whether a prompt passes the threshold of the Kendall distance, a number or `auto`."""
    if LARGEST in bounds:
        return pvalue(len(row["pacs"]), row["kendall_distance"]) <= bounds[LARGEST]
    return row["kendall_distance"] >= bounds["kendall_threshold"]


def benjamini_hochberg(pvalues: Counter[float], level: float) -> tuple[float, int]:
    """Returns the largest rejected p-value and the number of rejections; (-1, 0) without rejections.

    Args:
        pvalues: frequency of each p-value.
        level: false-discovery rate, the expected fraction of false rejections.

    >>> benjamini_hochberg(Counter([0.01, 0.02, 0.04, 0.9]), 0.05)
    (0.02, 2)
    """
    every, so_far, largest, rejected = pvalues.total(), 0, -1.0, 0
    for p in sorted(pvalues):
        so_far += pvalues[p]
        if p * every <= level * so_far:
            largest, rejected = p, so_far
    return largest, rejected


def kendall_cases(rows: Iterable[Row]) -> Cases:
    """Counts each combination of number of answers and Kendall distance; counts of parts of a table can be added."""
    return Counter((len(row["pacs"]), row["kendall_distance"]) for row in rows)


def kendall_report(seen: Cases, level: float) -> dict[str, Any]:
    """Reports which prompts disagree more than chance; memory does not grow with the number of rows.

    Args:
        seen: the cases of the usable prompts.
        level: the false-discovery rate.

    Returns:
        `false_discovery_rate`: the level. For independent prompts, it bounds the expected fraction of chosen prompts
        with unrelated orders. `expected_false_discovery_rate`: expected number of passing prompts if all orders were
        unrelated, divided by the actual number; at most the level. `prompts` and `chosen`: number of tested and chosen
        prompts. `largest_pvalue` of the chosen (-1: none), `smallest_pvalue` of all, and `distances`: the smallest
        chosen Kendall distance for each number of answers.
    """
    pvalues: Counter[float] = Counter()
    for case, times in seen.items():
        pvalues[pvalue(*case)] += times
    largest, chosen = benjamini_hochberg(pvalues, level)
    distances: dict[int, float] = {}
    for answers, distance in sorted(seen, reverse=True):
        if pvalue(answers, distance) <= largest:
            distances[answers] = distance
    return {
        "false_discovery_rate": level,
        "expected_false_discovery_rate": largest * pvalues.total() / chosen if chosen else 0.0,
        "prompts": pvalues.total(),
        "chosen": chosen,
        "largest_pvalue": largest,
        "smallest_pvalue": min(pvalues, default=1.0),
        "distances": dict(sorted(distances.items())),
    }


def kendall_bound(seen: Cases, level: float) -> tuple[Bounds, dict[str, Any]]:
    """Computes the bound for `auto` and its report, and logs the report.

    Raises:
        UserError: no prompt disagrees more than chance.
    """
    found = kendall_report(seen, level)
    if not found["chosen"]:
        raise UserError(
            f"kendall_threshold auto: none of {found['prompts']} prompts disagrees more than chance at a "
            f"false-discovery rate of {level:g} (smallest p-value {found['smallest_pvalue']:.2g}); raise "
            "false_discovery_rate, sample more answers per prompt, or set a number or a quantile"
        )
    logger.info(
        "kendall_threshold auto: %d of %d prompts disagree more than chance; expected false-discovery rate %.3g, at "
        "most %g; least Kendall distance by number of answers: %s",
        found["chosen"],
        found["prompts"],
        found["expected_false_discovery_rate"],
        level,
        ", ".join(f"{answers}: {distance:.3f}" for answers, distance in found["distances"].items()),
    )
    return {LARGEST: found["largest_pvalue"]}, found
