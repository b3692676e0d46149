"""Kendall's test: tau and its p-value from the counts of each row. One implementation for all devices.

Under the hypothesis that x and y are unrelated, every order of a row without ties is as likely as any other, so
that the number of discordant pairs is distributed as the number of inversions of a random permutation. That
is the exact distribution; the asymptotic one is a normal distribution of concordant - discordant, whose
variance takes ties into account.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from shfcas.ops import _library

assert _library  # its import defines the ops

_TABLE_LENGTH = 33  # up to here, "auto" takes the exact distribution, out of a table
_TABLE_PAIRS = _TABLE_LENGTH * (_TABLE_LENGTH - 1) // 2
_MAX_FACTORIAL = 178  # 1 / 178! is 0 in float64


def kendall_test(
    x: Tensor,
    y: Tensor,
    variant: str = "b",
    alternative: str = "two-sided",
    method: str = "auto",
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The op ``shfcas::kendall_test``; :func:`shfcas.kendall_test` documents it."""
    _check_choice("variant", variant, ("a", "b", "c"))
    _check_choice("alternative", alternative, ("two-sided", "less", "greater"))
    _check_choice("method", method, ("auto", "exact", "asymptotic"))
    try:
        statistics = torch.ops.shfcas.kendall_statistics.default(x, y, offsets)
    except ValueError as error:
        raise ValueError(str(error).replace("kendall_statistics", "kendall_test", 1)) from None
    concordant, discordant, tied_x, tied_y, _, classes, triples_x, triples_y = statistics
    n = concordant.new_full((), x.shape[-1]) if offsets is None else offsets.diff()
    pairs = n * (n - 1) // 2
    excess = (concordant - discordant).double()
    constant = (tied_x == pairs) | (tied_y == pairs)
    invalid = (concordant < 0) | (n < 2)

    # As csrc/core/pair_counts.h.
    if variant == "a":
        tau = excess / pairs
    elif variant == "b":
        untied_x, untied_y = (pairs - tied_x).double(), (pairs - tied_y).double()
        tau = excess / torch.where(untied_x == untied_y, untied_x, (untied_x * untied_y).sqrt())
    else:
        size, groups = n.double(), classes.double()
        tau = 2 * excess / (size * size * (groups - 1) / groups)
    if variant != "a":
        tau = tau.clamp(-1, 1).masked_fill(constant, math.nan)
    tau = tau.masked_fill(invalid, math.nan)

    pvalue = torch.full_like(tau, math.nan)
    untied = (tied_x == 0) & (tied_y == 0)
    if method != "exact":
        pvalue = _asymptotic(n.double(), excess, tied_x, tied_y, triples_x, triples_y, alternative)
    if method != "asymptotic":
        extreme = {
            "greater": discordant,
            "less": concordant,
            "two-sided": torch.minimum(concordant, discordant),
        }[alternative]
        probability = _at_most(extreme, n, pairs)
        if method == "exact":
            probability = _fill_long_rows(probability, extreme, n, untied & ~invalid)
        if alternative == "two-sided":
            probability = (2 * probability).clamp(max=1)
        # Where the closed forms end, "auto" leaves rows to the asymptotic distribution.
        pvalue = torch.where(untied & ~probability.isnan(), probability, pvalue)
    return tau, pvalue.masked_fill(invalid | constant, math.nan)


def distance_pvalue(discordant: Tensor, n: Tensor) -> Tensor:
    """P(at least so many discordant pairs) of unrelated orders of n elements without ties.

    Exact up to 33 elements and at the ends; beyond, the normal approximation, as `kendall_test` has them.
    """
    pairs = n * (n - 1) // 2
    exact = _at_most(pairs - discordant, n, pairs)  # the distribution is symmetric
    none = torch.zeros_like(discordant)
    asymptotic = _asymptotic(n.double(), (pairs - 2 * discordant).double(), none, none, none, none, "less")
    return torch.where(exact.isnan(), asymptotic, exact)


def _check_choice(argument: str, value: str, choices: tuple[str, str, str]) -> None:
    if value not in choices:
        first, second, third = choices
        raise ValueError(f"kendall_test: {argument}: expected '{first}', '{second}' or '{third}', got '{value}'")


def _asymptotic(
    n: Tensor,
    excess: Tensor,
    tied_x: Tensor,
    tied_y: Tensor,
    triples_x: Tensor,
    triples_y: Tensor,
    alternative: str,
) -> Tensor:
    """The normal approximation (Kendall, Rank Correlation Methods, 4th edition, 1970).

    Each tie group of t values takes t (t - 1) (2 t + 5) = 2 t (t - 1) (t - 2) + 9 t (t - 1) from the variance.
    """
    ordered_pairs = n * (n - 1)
    ties_x, ties_y = 2 * triples_x + 18 * tied_x, 2 * triples_y + 18 * tied_y
    variance = (ordered_pairs * (2 * n + 5) - ties_x - ties_y) / 18 + 2 * tied_x.double() * tied_y / ordered_pairs
    variance = variance + triples_x * triples_y / (9 * ordered_pairs * (n - 2).clamp(min=1))  # no triples in 2
    z = excess / variance.sqrt()
    # P(Z >= z) = erfc(z / sqrt(2)) / 2, with all its digits where it is small; torch.special.ndtr has none there.
    scaled = z * math.sqrt(0.5)
    if alternative == "two-sided":
        return torch.erfc(scaled.abs())
    return torch.erfc(scaled if alternative == "greater" else -scaled) / 2


def _at_most(k: Tensor, n: Tensor, pairs: Tensor) -> Tensor:
    """P(at most k inversions of n elements); NaN for long rows, but for the two smallest and the largest k.

    Reads nothing back, so that a device is not waited for: take() instead of [], which would read a scalar.
    """
    from_table = _table(k.device).take(n.clamp(0, _TABLE_LENGTH) * (_TABLE_PAIRS + 1) + k.clamp(0, _TABLE_PAIRS))
    reciprocal = _reciprocal_factorials(k.device)
    none = reciprocal.take(n.clamp(0, _MAX_FACTORIAL))
    at_most_one = reciprocal.take((n - 1).clamp(0, _MAX_FACTORIAL))  # 1 + (n - 1) permutations of n!
    ends = torch.where(k == 0, none, torch.where(k == 1, at_most_one, math.nan))
    ends = torch.where(k >= pairs - 1, 1.0, ends)  # short of 1 by 1 / n!, less than float64 can tell
    return torch.where(n <= _TABLE_LENGTH, from_table, ends)


@cache
def _table(device: torch.device) -> Tensor:
    """P(at most k inversions) at [n, k], correctly rounded."""
    counts, rows = [1], []  # of permutations of n elements, by inversions
    for n in range(_TABLE_LENGTH + 1):
        if n > 1:  # the n-th element adds 0 to n - 1 inversions
            sums = [0, *accumulate(counts)]
            most = n * (n - 1) // 2
            counts = [sums[min(k + 1, len(counts))] - sums[max(0, k - n + 1)] for k in range(most + 1)]
        row = [total / math.factorial(n) for total in accumulate(counts)]
        rows.append(row + [1.0] * (_TABLE_PAIRS + 1 - len(row)))
    return torch.tensor(rows, dtype=torch.float64, device=device)


@cache
def _reciprocal_factorials(device: torch.device) -> Tensor:
    values = [1 / math.factorial(n) for n in range(_MAX_FACTORIAL + 1)]
    return torch.tensor(values, dtype=torch.float64, device=device)


def _fill_long_rows(probability: Tensor, k: Tensor, n: Tensor, wanted: Tensor) -> Tensor:
    """What `_at_most` left NaN in the wanted rows, computed on the host; O(N^3) for each length of a row."""
    missing = (wanted & probability.isnan()).cpu()
    if not missing.any():
        return probability
    result, k, n = probability.cpu().clone(), k.cpu(), n.cpu().expand(k.shape)
    for length in n[missing].unique().tolist():
        rows = missing & (n == length)
        result[rows] = _long_at_most(k[rows], length)
    return result.to(probability.device)


def _long_at_most(k: Tensor, n: int) -> Tensor:
    """P(at most k inversions of n elements) for several k, from the smaller tail."""
    pairs = n * (n - 1) // 2
    upper = 2 * k >= pairs
    tail = torch.where(upper, pairs - 1 - k, k)
    mass = torch.zeros(int(tail.max()) + 1, dtype=torch.float64)
    mass[0] = 1
    for size in range(2, n + 1):
        sums = mass.cumsum(0)
        mass = sums.clone()
        mass[size:] -= sums[:-size]
        mass /= size
    probability = mass.cumsum(0)[tail]
    return torch.where(upper, 1 - probability, probability)


torch.library.impl("shfcas::kendall_test", "CompositeExplicitAutograd", kendall_test)
