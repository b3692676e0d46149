"""Readable reference versions of the ops: plain Python over the pairs of a row, no vectorisation.

The functions have the signatures of :mod:`shfcas.ops`, and its kernels are tested against them. They are slow,
O(N^2) per row or worse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise

import torch
from torch import Tensor

from shfcas.ops.functional import ConflictScores, KendallCounts, KendallTest, Variant
from shfcas.ops.logprobs import TokenLogprobs

MIN_STD = 1e-6
"""Rows with a smaller population standard deviation are degenerate."""


def kendall_counts(x: Tensor, y: Tensor, *, offsets: Tensor | None = None) -> KendallCounts:
    """Counts the pairs of each row, as :func:`shfcas.kendall_counts`."""
    counts = [_count(*row) for row in _rows(x, y, offsets)]
    return KendallCounts(*(_per_row([count[i] for count in counts], torch.int64, x, offsets) for i in range(5)))


def kendall_tau(x: Tensor, y: Tensor, *, variant: Variant = "b", offsets: Tensor | None = None) -> Tensor:
    """Computes Kendall's tau of each row, as :func:`shfcas.kendall_tau`."""
    taus = [_tau(*row, variant) for row in _rows(x, y, offsets)]
    return _per_row(taus, torch.float64, x, offsets)


def kendall_distance(x: Tensor, y: Tensor, *, normalized: bool = True, offsets: Tensor | None = None) -> Tensor:
    """Computes the Kendall-tau distance of each row, as :func:`shfcas.kendall_distance`."""
    distances = [_distance(*row, normalized) for row in _rows(x, y, offsets)]
    return _per_row(distances, torch.float64, x, offsets)


def kendall_test(
    x: Tensor,
    y: Tensor,
    *,
    variant: Variant = "b",
    alternative: str = "two-sided",
    method: str = "auto",
    offsets: Tensor | None = None,
) -> KendallTest:
    """Computes Kendall's tau of each row and its p-value, as :func:`shfcas.kendall_test`."""
    pvalues = [_pvalue(*row, alternative, method) for row in _rows(x, y, offsets)]
    return KendallTest(
        tau=kendall_tau(x, y, variant=variant, offsets=offsets),
        pvalue=_per_row(pvalues, torch.float64, x, offsets),
    )


def kendall_tau_matrix(x: Tensor, *, variant: Variant = "b") -> Tensor:
    """Computes Kendall's tau of every two rows, as :func:`shfcas.kendall_tau_matrix`."""
    rows = x.tolist()
    taus = [_tau(one, other, variant) for one in rows for other in rows]
    return torch.tensor(taus, dtype=torch.float64).reshape(len(rows), len(rows))


def kendall_distance_matrix(x: Tensor) -> Tensor:
    """Computes the Kendall-tau distance of every two rows, as :func:`shfcas.kendall_distance_matrix`."""
    rows = x.tolist()
    distances = [_distance(one, other, True) for one in rows for other in rows]
    return torch.tensor(distances, dtype=torch.float64).reshape(len(rows), len(rows))


def sequence_logprobs(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes the log-probability of each sequence of tokens, as :func:`shfcas.sequence_logprobs`."""
    sums = [math.fsum(logprob for logprob, _ in row) for row in _tokens(logits, labels, mask, 1.0)]
    return torch.tensor(sums, dtype=_float_dtype(logits))


def token_logprobs(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0
) -> TokenLogprobs:
    """Computes log-probabilities and entropies, as :func:`shfcas.token_logprobs`."""
    tokens = torch.tensor(_tokens(logits, labels, mask, temperature), dtype=_float_dtype(logits))
    return TokenLogprobs(*tokens.reshape(*labels.shape, 2).unbind(-1))


def pacs(rewards: Tensor, logprobs: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Computes the conflict score of each answer, as :func:`shfcas.pacs`."""
    scores = [score for row in _rows(rewards, logprobs, offsets) for score in _pacs(*row)]
    return torch.tensor(scores, dtype=_float_dtype(rewards), device=rewards.device).reshape(rewards.shape)


def conflict_scores(rewards: Tensor, logprobs: Tensor, *, offsets: Tensor | None = None) -> ConflictScores:
    """Computes all conflict measures of each row, as :func:`shfcas.conflict_scores`."""
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
    """Yields each row of x and y as lists of numbers."""
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


def _pvalue(x: list[float], y: list[float], alternative: str, method: str) -> float:
    n, (concordant, discordant, tied_x, tied_y, _) = len(x), _count(x, y)
    pairs = n * (n - 1) // 2
    if n < 2 or concordant < 0 or pairs in (tied_x, tied_y):
        return math.nan
    untied = tied_x == tied_y == 0
    if method == "exact" and not untied:
        return math.nan
    if method == "auto":
        method = "exact" if untied and (n <= 33 or min(concordant, discordant) <= 1) else "asymptotic"

    if method == "exact":
        at_least, at_most = _inversions_at_most(discordant, n), _inversions_at_most(concordant, n)
    else:
        z = (concordant - discordant) / math.sqrt(_variance(n, Counter(x).values(), Counter(y).values()))
        at_least, at_most = math.erfc(z / math.sqrt(2)) / 2, math.erfc(-z / math.sqrt(2)) / 2
    one_sided = {"greater": at_least, "less": at_most}
    return one_sided.get(alternative, min(1.0, 2 * min(at_least, at_most)))


def _inversions_at_most(most: int, n: int) -> float:
    """Returns the fraction of the permutations of n elements with at most that many inversions."""
    counts = [1]  # permutations by number of inversions
    for size in range(2, n + 1):  # the last element passes 0 to size - 1 others
        longer = [0] * (len(counts) + size - 1)
        for inversions, count in enumerate(counts):
            for passed in range(size):
                longer[inversions + passed] += count
        counts = longer
    return sum(counts[: most + 1]) / math.factorial(n)


def _variance(n: int, groups_x: Iterable[int], groups_y: Iterable[int]) -> float:
    """Returns the variance of concordant - discordant, given the sizes of the groups of equal values."""
    spread_x, pairs_x, triples_x = _moments(groups_x)
    spread_y, pairs_y, triples_y = _moments(groups_y)
    variance = (n * (n - 1) * (2 * n + 5) - spread_x - spread_y) / 18 + pairs_x * pairs_y / (2 * n * (n - 1))
    return variance if n < 3 else variance + triples_x * triples_y / (9 * n * (n - 1) * (n - 2))


def _moments(groups: Iterable[int]) -> tuple[int, int, int]:
    sizes = list(groups)
    return (
        sum(t * (t - 1) * (2 * t + 5) for t in sizes),
        sum(t * (t - 1) for t in sizes),
        sum(t * (t - 1) * (t - 2) for t in sizes),
    )


def _tokens(logits: Tensor, labels: Tensor, mask: Tensor | None, temperature: float) -> list[list[tuple[float, float]]]:
    """Returns the log-probability and entropy at each position."""
    counts = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    sequences = zip(logits.tolist(), labels.tolist(), counts.tolist(), strict=True)
    return [
        [
            _log_softmax([logit / temperature for logit in row], label) if counted else (0.0, 0.0)
            for row, label, counted in zip(*sequence, strict=True)
        ]
        for sequence in sequences
    ]


def _log_softmax(logits: list[float], label: int) -> tuple[float, float]:
    highest = max(logits)
    if any(map(math.isnan, logits)) or math.isinf(highest):
        return math.nan, math.nan
    total = math.log(math.fsum(math.exp(logit - highest) for logit in logits))
    logprobs = [logit - highest - total for logit in logits]
    entropy = -math.fsum(math.exp(logprob) * logprob for logprob in logprobs if logprob > -math.inf)
    return logprobs[label], entropy


def _mean_std(values: list[float]) -> tuple[float, float]:
    """Returns the mean and population standard deviation; NaN for a row that is not finite."""
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
