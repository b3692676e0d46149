"""Prompts whose Kendall distance is more than chance, at a false-discovery rate.

If reward model and policy ordered the answers of a prompt independently, without ties, every order would be as likely
as any other, and the number of discordant pairs would be that of the inversions of a random permutation, whose
distribution the Mahonian numbers give. A prompt's p-value is the probability of at least as many: one-sided, for
only a high distance is a conflict. Ties count as neither order, so they make a distance smaller and the test
stricter. The step-up procedure of Benjamini and Hochberg (1995) then says how small a p-value has to be.
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
LARGEST = "kendall_pvalue"  # among the bounds: the largest p-value of a prompt that is asked about


def pvalue(answers: int, distance: float) -> float:
    """P(at least this Kendall distance) of unrelated orders of so many answers.

    >>> round(pvalue(3, 2 / 3), 4), pvalue(8, 0.0)
    (0.5, 1.0)
    """
    return _pvalue(answers, round(distance * (answers * (answers - 1) // 2)))


@cache
def _pvalue(answers: int, discordant: int) -> float:
    return float(distance_pvalue(torch.tensor(discordant), torch.tensor(answers)))


def disagrees(row: Row, bounds: Bounds) -> bool:
    """Whether a prompt passes the threshold of the Kendall distance, be it a number or `auto`."""
    if LARGEST in bounds:
        return pvalue(len(row["pacs"]), row["kendall_distance"]) <= bounds[LARGEST]
    return row["kendall_distance"] >= bounds["kendall_threshold"]


def benjamini_hochberg(pvalues: Counter[float], level: float) -> tuple[float, int]:
    """The largest p-value that is rejected, and how many are; (-1, 0) if none is.

    Args:
        pvalues: how often each p-value occurs.
        level: what share of the rejected may be expected to be false.

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
    """How often each number of answers and Kendall distance occurs; counts of parts of a table add up."""
    return Counter((len(row["pacs"]), row["kendall_distance"]) for row in rows)


def kendall_report(seen: Cases, level: float) -> dict[str, Any]:
    """Which prompts disagree more than chance, in one pass and in memory that the number of rows does not matter to.

    Args:
        seen: the cases of the usable prompts.
        level: the false-discovery rate.

    Returns:
        `false_discovery_rate`: the level, which bounds the expected share, among the chosen prompts, of those whose
        orders are unrelated, if prompts are independent. `expected_false_discovery_rate`: how many prompts would pass
        if the orders of all were unrelated, over how many did; at most the level. `prompts` and `chosen`: how many
        were tested and chosen. `largest_pvalue` of the chosen (-1: none), `smallest_pvalue` of all, and `distances`:
        for each number of answers the least Kendall distance that was chosen.
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
    """The bound that `auto` stands for, and the report about it, which is logged too.

    Raises:
        UserError: no prompt disagrees more than chance.
    """
    found = kendall_report(seen, level)
    if not found["chosen"]:
        raise UserError(
            f"kendall_threshold auto: none of {found['prompts']} prompts disagrees more than chance at a "
            f"false-discovery rate of {level:g} (smallest p-value {found['smallest_pvalue']:.2g}); raise "
            "false_discovery_rate, sample more answers a prompt, or give a number or a quantile"
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
