"""Rank agreement and proxy-policy conflict, row by row.

Most functions take two tensors of the same shape, dtype and device. Rows are the last dimension of
``(..., N)``. With ``offsets`` of shape ``(B + 1,)`` and dtype int64, row ``b`` of flat ``(T,)`` values is
``values[offsets[b]:offsets[b + 1]]``, the layout of Arrow lists. Offsets start at 0, never decrease and end at
``T``. Bad offsets raise ValueError on the CPU. On CUDA, where checking them would synchronise with the device,
they are clamped, and scores before the first offset and behind the last are NaN. Jagged nested tensors of shape
``(B, jagged)``, ``torch.nested.nested_tensor(rows, layout=torch.jagged)``, have offsets of their own; a result with
one entry per element is nested too. A row has at most 2^31 - 1 values.

float16 and bfloat16 are widened to float32, which changes no comparison. A NaN makes only its own row invalid.
The same functions are ops, ``torch.ops.shfcas.*``. They work with ``torch.compile``, compute the same under
``torch.autocast``, and have rules for ``torch.func`` and ``torch.vmap``. Rank statistics are piecewise constant: their
tangents and gradients are 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shfcas.ops import _autograd, _fake_kernels, _pvalues, _vmap
from shfcas.ops._arguments import FLOATING, NUMBERS, check_dtype, row_arguments, rows_like

assert _autograd and _fake_kernels and _pvalues and _vmap  # their import completes the ops

Variant = Literal["a", "b", "c"]


class KendallCounts(NamedTuple):
    """Counts of the N (N - 1) / 2 pairs of each row; int64, one entry per row, -1 for a row with NaN.

    ``concordant + discordant + tied_x + tied_y - tied_both`` is the number of pairs.
    """

    concordant: Tensor
    discordant: Tensor
    tied_x: Tensor
    """Pairs tied in x, whether or not in y."""
    tied_y: Tensor
    """Pairs tied in y, whether or not in x."""
    tied_both: Tensor


class KendallTest(NamedTuple):
    """Kendall's tau of each row and its p-value; float64."""

    tau: Tensor
    pvalue: Tensor


class ConflictScores(NamedTuple):
    """Conflict between a reward model and a policy about the answers to each prompt."""

    pacs: Tensor
    """Per answer, as :func:`pacs`."""
    mean_abs_pacs: Tensor
    """Per prompt, the mean of abs(pacs); 0 without answers."""
    kendall_distance: Tensor
    """Per prompt, normalized, as :func:`kendall_distance`; float64."""
    kendall_tau_b: Tensor
    """Per prompt, as :func:`kendall_tau`; float64."""
    degenerate: Tensor
    """Per prompt: fewer than two answers, or rewards or logprobs with a standard deviation below 1e-6."""


def kendall_counts(x: Tensor, y: Tensor, *, offsets: Tensor | None = None) -> KendallCounts:
    """Counts the concordant, discordant and tied pairs of each row.

    A pair ``i < j`` is concordant if x and y order it the same way, discordant if they order it oppositely, and
    tied if either has equal values. -0.0 equals +0.0, and infinities are the ends of the order. The counts are
    exact for every N and cost O(N log N).

    Args:
        x: Shape (..., N), or (T,) with offsets; floating or integer.
        y: As x.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        Five int64 tensors of shape (...), or (B,) with offsets.

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices differ, or offsets do not fit the values.

    Examples:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 3.0])
        >>> y = torch.tensor([1.0, 3.0, 2.0, 2.0])
        >>> [int(count) for count in kendall_counts(x, y)]
        [3, 2, 1, 1, 1]
    """
    x, y, offsets = row_arguments("kendall_counts", ("x", x), ("y", y), offsets, NUMBERS)
    return KendallCounts(*torch.ops.shfcas.kendall_counts.default(x, y, offsets))


def kendall_tau(x: Tensor, y: Tensor, *, variant: Variant = "b", offsets: Tensor | None = None) -> Tensor:
    """Computes Kendall's rank correlation of each row.

    With C concordant and D discordant of n0 = N (N - 1) / 2 pairs, n1 pairs tied in x, n2 tied in y, and m
    the smaller number of distinct values:

    - ``a``: (C - D) / n0
    - ``b``: (C - D) / sqrt((n0 - n1) (n0 - n2)), the default of :func:`scipy.stats.kendalltau`
    - ``c``: 2 (C - D) / (N^2 (m - 1) / m)

    The result has no gradient.

    Args:
        x: Shape (..., N), or (T,) with offsets; floating or integer.
        y: As x.
        variant: The variant of tau.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        float64 in [-1, 1], shape (...), or (B,) with offsets. NaN for N < 2 and for a row with NaN; with b and
        c also if x or y is constant.

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices differ, offsets do not fit the values, or the variant is unknown.

    Source:
        Kendall, Biometrika 30 (1938) and 33 (1945); Stuart, Biometrika 40 (1953).

    Examples:
        >>> kendall_tau(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0]))
        tensor(0.3333, dtype=torch.float64)
    """
    x, y, offsets = row_arguments("kendall_tau", ("x", x), ("y", y), offsets, NUMBERS)
    return torch.ops.shfcas.kendall_tau.default(x, y, variant, offsets)


def kendall_distance(x: Tensor, y: Tensor, *, normalized: bool = True, offsets: Tensor | None = None) -> Tensor:
    """Computes the Kendall-tau distance of each row: the pairs that x and y order oppositely.

    It is 0 for the same order, about 0.5 for unrelated orders, and 1 for the reverse order; without ties,
    (1 - tau) / 2. Tied pairs are not discordant. The result has no gradient.

    Args:
        x: Shape (..., N), or (T,) with offsets; floating or integer.
        y: As x.
        normalized: Divide by the number of pairs, N (N - 1) / 2.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        float64, shape (...), or (B,) with offsets. NaN for a row with NaN and, if normalized, for N < 2.

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices differ, or offsets do not fit the values.

    Source:
        Kendall, Biometrika 30 (1938). As a measure of conflict: Liu et al., arXiv 2512.09212.

    Examples:
        >>> x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
        >>> y = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
        >>> kendall_distance(x, y)
        tensor([0., 1.], dtype=torch.float64)
    """
    x, y, offsets = row_arguments("kendall_distance", ("x", x), ("y", y), offsets, NUMBERS)
    return torch.ops.shfcas.kendall_distance.default(x, y, normalized, offsets)


def kendall_test(
    x: Tensor,
    y: Tensor,
    *,
    variant: Variant = "b",
    alternative: Literal["two-sided", "less", "greater"] = "two-sided",
    method: Literal["auto", "exact", "asymptotic"] = "auto",
    offsets: Tensor | None = None,
) -> KendallTest:
    """Tests whether x and y are related, row by row, like :func:`scipy.stats.kendalltau` for a single row.

    The p-value is that of concordant - discordant, and thus the same for every variant. The exact distribution
    holds for rows without ties. ``auto`` uses it for N <= 33, and if at most one pair is discordant or at most
    one is concordant. Otherwise it uses the normal approximation, which accounts for ties.

    On CUDA, ``auto`` and ``asymptotic`` do not synchronise with the device. The first call on a device copies
    tables there, so make one call before capturing a graph. ``exact`` computes rows with N > 33 on the host, in
    O(N^3) per row length.

    Args:
        x: Shape (..., N), or (T,) with offsets; floating or integer.
        y: As x.
        variant: The variant of tau, as in :func:`kendall_tau`.
        alternative: The alternative hypothesis: related (``two-sided``), negatively (``less``) or positively
            (``greater``).
        method: The distribution.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        tau and pvalue, float64, shape (...), or (B,) with offsets. Both are NaN for N < 2 and for a row with NaN.
        The p-value is also NaN for a constant row, and with ``exact`` for a row with ties (scipy raises).

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices differ, offsets do not fit the values, or a choice is unknown.

    Source:
        Kendall, Rank Correlation Methods, 4th edition, 1970.

    Examples:
        >>> test = kendall_test(torch.arange(5.0), torch.tensor([0.0, 1.0, 2.0, 4.0, 3.0]))
        >>> test.tau, test.pvalue
        (tensor(0.8000, dtype=torch.float64), tensor(0.0833, dtype=torch.float64))
    """
    x, y, offsets = row_arguments("kendall_test", ("x", x), ("y", y), offsets, NUMBERS)
    return KendallTest(*torch.ops.shfcas.kendall_test.default(x, y, variant, alternative, method, offsets))


def kendall_tau_matrix(x: Tensor, *, variant: Variant = "b") -> Tensor:
    """Computes Kendall's tau of every two rows of a matrix.

    The result has no gradient.

    Args:
        x: Shape (M, N); floating or integer.
        variant: The variant of tau, as in :func:`kendall_tau`.

    Returns:
        float64, shape (M, M), symmetric. Entries are NaN as in :func:`kendall_tau`: the row and column of an x
        row with NaN and, with b and c, of a constant x row, the diagonal included.

    Raises:
        TypeError: x is no tensor, or its dtype is not supported.
        ValueError: x does not have two dimensions, or the variant is unknown.

    Examples:
        >>> kendall_tau_matrix(torch.tensor([[1, 2, 3], [1, 3, 2], [3, 2, 1]]))
        tensor([[ 1.0000,  0.3333, -1.0000],
                [ 0.3333,  1.0000, -0.3333],
                [-1.0000, -0.3333,  1.0000]], dtype=torch.float64)
    """
    check_dtype("kendall_tau_matrix", ("x", x), NUMBERS)
    return torch.ops.shfcas.kendall_tau_matrix.default(x, variant)


def kendall_distance_matrix(x: Tensor) -> Tensor:
    """Computes the Kendall-tau distance of every two rows of a matrix: the fraction of discordant pairs.

    The result has no gradient.

    Args:
        x: Shape (M, N); floating or integer.

    Returns:
        float64 in [0, 1], shape (M, M), symmetric. NaN for N < 2, and in the row and column of an x row with NaN.

    Raises:
        TypeError: x is no tensor, or its dtype is not supported.
        ValueError: x does not have two dimensions.

    Examples:
        >>> kendall_distance_matrix(torch.tensor([[1, 2, 3], [3, 2, 1]]))
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    check_dtype("kendall_distance_matrix", ("x", x), NUMBERS)
    return torch.ops.shfcas.kendall_distance_matrix.default(x)


def pacs(rewards: Tensor, logprobs: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Computes the proxy-policy alignment conflict score (PACS) of each answer: z(reward) - z(logprob).

    z is the z-score within the row, with the population standard deviation. The score is positive if the reward
    model rates an answer higher than the policy does, and negative if it rates it lower. The conflict is the
    absolute value. Differentiable any number of times in both arguments.

    Args:
        rewards: Shape (..., N), or (T,) with offsets; floating. Higher is better.
        logprobs: As rewards.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        Scores in the shape of rewards, float64 for float64 inputs, otherwise float32. Rewards or logprobs with
        N < 2 or a standard deviation below 1e-6 are degenerate: their z and gradient are 0. A NaN or infinity
        makes its row NaN.

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices differ, or offsets do not fit the values.

    Source:
        Liu et al., Targeting Misalignment, arXiv 2512.09212.

    Examples:
        >>> pacs(torch.tensor([1.0, 0.0]), torch.tensor([-8.0, -4.0]))
        tensor([ 2., -2.])
    """
    first, second, offsets = row_arguments("pacs", ("rewards", rewards), ("logprobs", logprobs), offsets, FLOATING)
    return rows_like(rewards, torch.ops.shfcas.pacs.default(first, second, offsets))


def conflict_scores(rewards: Tensor, logprobs: Tensor, *, offsets: Tensor | None = None) -> ConflictScores:
    """Computes all conflict measures of each prompt's answers in one pass.

    The results equal those of :func:`pacs`, :func:`kendall_distance` and :func:`kendall_tau`, at about the cost
    of one of them. pacs and mean_abs_pacs are differentiable (where a score is 0, abs has the derivative 0); the
    others are piecewise constant and have no gradient.

    Args:
        rewards: Shape (..., N), or (T,) with offsets; floating. Higher is better.
        logprobs: As rewards.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        pacs in the shape of rewards; the other four with one entry per row, shape (...), or (B,) with offsets.
        NaN and degenerate rows are handled as in the single functions. A NaN alone does not make a row
        degenerate.

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices differ, or offsets do not fit the values.

    Source:
        Liu et al., Targeting Misalignment, arXiv 2512.09212.

    Examples:
        >>> scores = conflict_scores(torch.tensor([1.0, 0.0]), torch.tensor([-8.0, -4.0]))
        >>> scores.mean_abs_pacs, scores.kendall_distance, scores.degenerate
        (tensor(2.), tensor(1., dtype=torch.float64), tensor(False))
    """
    first, second, offsets = row_arguments(
        "conflict_scores", ("rewards", rewards), ("logprobs", logprobs), offsets, FLOATING
    )
    scores, *per_row = torch.ops.shfcas.conflict_scores.default(first, second, offsets)
    return ConflictScores(rows_like(rewards, scores), *per_row)
