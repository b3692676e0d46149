"""What the ops compute, written to be read: plain Python over the pairs of a row, no vectorisation.

The functions have the signatures of :mod:`shfcas.ops` and are what its kernels are tested against. They are
slow, O(N^2) per row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Literal

import torch
from torch import Tensor

from shfcas.ops import ConflictScores, KendallCounts

MIN_STD = 1e-6
"""Rows with a smaller population standard deviation are degenerate."""


def kendall_counts(x: Tensor, y: Tensor, *, offsets: Tensor | None = None) -> KendallCounts:
    """Counts of the pairs of each row, as :func:`shfcas.kendall_counts`."""
    counts = [_count(*row) for row in _rows(x, y, offsets)]
    return KendallCounts(*(_per_row([count[i] for count in counts], torch.int64, x, offsets) for i in range(5)))


def kendall_tau(
    x: Tensor, y: Tensor, *, variant: Literal["a", "b", "c"] = "b", offsets: Tensor | None = None
) -> Tensor:
    """Kendall's tau of each row, as :func:`shfcas.kendall_tau`."""
    taus = [_tau(*row, variant) for row in _rows(x, y, offsets)]
    return _per_row(taus, torch.float64, x, offsets)


def kendall_distance(x: Tensor, y: Tensor, *, normalized: bool = True, offsets: Tensor | None = None) -> Tensor:
    """Kendall-tau distance of each row, as :func:`shfcas.kendall_distance`."""
    distances = [_distance(*row, normalized) for row in _rows(x, y, offsets)]
    return _per_row(distances, torch.float64, x, offsets)


def pacs(rewards: Tensor, logprobs: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Conflict score of each answer, as :func:`shfcas.pacs`."""
    scores = [score for row in _rows(rewards, logprobs, offsets) for score in _pacs(*row)]
    return torch.tensor(scores, dtype=_float_dtype(rewards), device=rewards.device).reshape(rewards.shape)


def conflict_scores(rewards: Tensor, logprobs: Tensor, *, offsets: Tensor | None = None) -> ConflictScores:
    """All conflict measures of each row, as :func:`shfcas.conflict_scores`."""
    scores = pacs(rewards, logprobs, offsets=offsets)
    rows = list(_rows(rewards, logprobs, offsets))
    mean_abs = [math.fsum(map(abs, _pacs(*row))) / max(1, len(row[0])) for row in rows]
    degenerate = [_degenerate(reward) or _degenerate(logprob) for reward, logprob in rows]
    return ConflictScores(
        pacs=scores,
        mean_abs_pacs=_per_row(mean_abs, scores.dtype, rewards, offsets),
        kendall_distance=kendall_distance(rewards, logprobs, offsets=offsets),
        kendall_tau_b=kendall_tau(rewards, logprobs, offsets=offsets),
        degenerate=_per_row(degenerate, torch.bool, rewards, offsets),
    )


def _rows(x: Tensor, y: Tensor, offsets: Tensor | None) -> Iterator[tuple[list[float], list[float]]]:
    """Each row of both, as lists of numbers."""
    if offsets is not None:
        limits = offsets.tolist()
        for begin, end in pairwise(limits):
            yield x[begin:end].tolist(), y[begin:end].tolist()
    else:
        n = x.shape[-1]
        count = math.prod(x.shape[:-1])
        yield from zip(x.reshape(count, n).tolist(), y.reshape(count, n).tolist(), strict=True)


def _per_row(values: list, dtype: torch.dtype, x: Tensor, offsets: Tensor | None) -> Tensor:
    shape = x.shape[:-1] if offsets is None else (len(values),)
    return torch.tensor(values, dtype=dtype, device=x.device).reshape(shape)


def _float_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _count(x: list[float], y: list[float]) -> tuple[int, int, int, int, int]:
    if any(math.isnan(value) for value in x + y):
        return -1, -1, -1, -1, -1
    concordant = discordant = tied_x = tied_y = tied_both = 0
    for (xi, yi), (xj, yj) in combinations(zip(x, y, strict=True), 2):
        tied_x += xi == xj
        tied_y += yi == yj
        tied_both += xi == xj and yi == yj
        if xi != xj and yi != yj:
            concordant += (xi < xj) == (yi < yj)
            discordant += (xi < xj) != (yi < yj)
    return concordant, discordant, tied_x, tied_y, tied_both


def _tau(x: list[float], y: list[float], variant: str) -> float:
    n = len(x)
    concordant, discordant, tied_x, tied_y, _ = _count(x, y)
    if n < 2 or concordant < 0:
        return math.nan
    pairs = n * (n - 1) // 2
    if variant == "a":
        return (concordant - discordant) / pairs
    if tied_x == pairs or tied_y == pairs:
        return math.nan
    if variant == "b":
        tau = (concordant - discordant) / math.sqrt((pairs - tied_x) * (pairs - tied_y))
    elif variant == "c":
        classes = min(len(set(x)), len(set(y)))
        tau = 2 * (concordant - discordant) / (n**2 * (classes - 1) / classes)
    else:
        raise ValueError(f"kendall_tau: variant: expected 'a', 'b' or 'c', got {variant!r}")
    return min(1.0, max(-1.0, tau))


def _distance(x: list[float], y: list[float], normalized: bool) -> float:
    discordant = _count(x, y)[1]
    if discordant < 0 or (normalized and len(x) < 2):
        return math.nan
    return discordant / (len(x) * (len(x) - 1) / 2) if normalized else discordant


def _mean_std(values: list[float]) -> tuple[float, float]:
    """Mean and population standard deviation; NaN for a row that is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def _degenerate(values: list[float]) -> bool:
    return len(values) < 2 or _mean_std(values)[1] < MIN_STD


def _z_scores(values: list[float]) -> list[float]:
    if not values:
        return []
    mean, std = _mean_std(values)
    if _degenerate(values) and not math.isnan(std):
        return [0.0] * len(values)
    return [(value - mean) / std for value in values]


def _pacs(rewards: list[float], logprobs: list[float]) -> list[float]:
    return [reward - logprob for reward, logprob in zip(_z_scores(rewards), _z_scores(logprobs), strict=True)]
