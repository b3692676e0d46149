"""Kendall's test: tau and its p-value from the counts of each row. One implementation for all devices.

Under the null hypothesis that x and y are unrelated, every order of a row without ties is equally likely. The
number of discordant pairs is then distributed as the number of inversions of a random permutation. This is the
exact distribution. The asymptotic one is a normal distribution of concordant - discordant, with a variance that
accounts for ties.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from shfcas.ops import _library

assert _library  # its import defines the ops

_TABLE_LENGTH = 33  # up to this row length, "auto" uses the exact distribution, from a table
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
    """Implements the op ``shfcas::kendall_test``; see :func:`shfcas.kendall_test`."""
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

    # The formulas of csrc/core/pair_counts.h.
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
        # Without a closed form, "auto" uses the asymptotic distribution.
        pvalue = torch.where(untied & ~probability.isnan(), probability, pvalue)
    return tau, pvalue.masked_fill(invalid | constant, math.nan)


def distance_pvalue(discordant: Tensor, n: Tensor) -> Tensor:
    """Returns P(at least this many discordant pairs) for unrelated orders of n elements without ties.

    Exact up to 33 elements and at the ends of the distribution, otherwise the normal approximation, as in
    `kendall_test`.
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
    """Returns p-values of the normal approximation (Kendall, Rank Correlation Methods, 4th edition, 1970).

    Each tie group of t values reduces 18 times the variance by t (t - 1) (2 t + 5), which is
    2 t (t - 1) (t - 2) + 9 t (t - 1).
    """
    ordered_pairs = n * (n - 1)
    ties_x, ties_y = 2 * triples_x + 18 * tied_x, 2 * triples_y + 18 * tied_y
    variance = (ordered_pairs * (2 * n + 5) - ties_x - ties_y) / 18 + 2 * tied_x.double() * tied_y / ordered_pairs
    variance = variance + triples_x * triples_y / (9 * ordered_pairs * (n - 2).clamp(min=1))  # no triples in 2
    z = excess / variance.sqrt()
    # P(Z >= z) = erfc(z / sqrt(2)) / 2 is accurate for small probabilities; torch.special.ndtr is not.
    scaled = z * math.sqrt(0.5)
    if alternative == "two-sided":
        return torch.erfc(scaled.abs())
    return torch.erfc(scaled if alternative == "greater" else -scaled) / 2


def _at_most(k: Tensor, n: Tensor, pairs: Tensor) -> Tensor:
    """Returns P(at most k inversions of n elements); NaN for long rows, except for the two smallest and largest k.

    Does not synchronise with the device: take() instead of [], which would read a scalar.
    """
    from_table = _table(k.device).take(n.clamp(0, _TABLE_LENGTH) * (_TABLE_PAIRS + 1) + k.clamp(0, _TABLE_PAIRS))
    reciprocal = _reciprocal_factorials(k.device)
    none = reciprocal.take(n.clamp(0, _MAX_FACTORIAL))
    at_most_one = reciprocal.take((n - 1).clamp(0, _MAX_FACTORIAL))  # 1 + (n - 1) permutations of n!
    ends = torch.where(k == 0, none, torch.where(k == 1, at_most_one, math.nan))
    ends = torch.where(k >= pairs - 1, 1.0, ends)  # 1 - 1 / n! rounds to 1 in float64
    return torch.where(n <= _TABLE_LENGTH, from_table, ends)


@cache
def _table(device: torch.device) -> Tensor:
    """Returns P(at most k inversions) at [n, k], correctly rounded."""
    counts, rows = [1], []  # counts: permutations of n elements, by number of inversions
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
    """Computes the NaN entries of `_at_most` in the wanted rows on the host; O(N^3) per row length."""
    missing = (wanted & probability.isnan()).cpu()
    if not missing.any():
        return probability
    result, k, n = probability.cpu().clone(), k.cpu(), n.cpu().expand(k.shape)
    for length in n[missing].unique().tolist():
        rows = missing & (n == length)
        result[rows] = _long_at_most(k[rows], length)
    return result.to(probability.device)


def _long_at_most(k: Tensor, n: int) -> Tensor:
    """Returns P(at most k inversions of n elements) for several k, from the smaller tail."""
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
