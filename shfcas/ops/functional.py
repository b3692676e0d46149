"""Rank agreement and proxy-policy conflict, row by row.

Most functions take two tensors of one shape, dtype and device. Rows are the last dimension of ``(..., N)``;
or, with ``offsets`` of shape ``(B + 1,)`` and dtype int64, row ``b`` of flat ``(T,)`` values is
``values[offsets[b]:offsets[b + 1]]``, the layout of Arrow lists. Offsets start at 0, never decrease and end at
``T``. On CUDA, where looking at them would wait for the device, bad offsets are clamped to the values instead
of refused. Jagged nested tensors of shape ``(B, jagged)``, ``torch.nested.nested_tensor(rows,
layout=torch.jagged)``, bring their offsets along; a result with an entry for each element is nested likewise.
A row has at most 2^31 - 1 values.

float16 and bfloat16 are widened to float32, which changes no comparison. A NaN makes its own row invalid and
no other. The same functions are ops, ``torch.ops.shfcas.*``, compile with ``torch.compile`` and compute the
same under ``torch.autocast``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shfcas.ops import _autograd, _fake_kernels, _pvalues
from shfcas.ops._arguments import FLOATING, NUMBERS, check_dtype, row_arguments, rows_like

assert _autograd and _fake_kernels and _pvalues  # their import completes the ops

Variant = Literal["a", "b", "c"]


class KendallCounts(NamedTuple):
    """What the N (N - 1) / 2 pairs of each row do; int64, one entry per row, -1 for a row with NaN.

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
    """Kendall's tau of each row and how likely one so far from 0 is by chance; float64."""

    tau: Tensor
    pvalue: Tensor


class ConflictScores(NamedTuple):
    """How a reward model and a policy disagree about the answers to each prompt."""

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
    """Count the concordant, discordant and tied pairs of each row.

    A pair ``i < j`` is concordant if x and y order it alike, discordant if they order it oppositely, and
    tied where either has equal values; -0.0 equals +0.0, and infinities order as numbers. The counts are
    exact for every N, and cost O(N log N).

    Args:
        x: Shape (..., N), or (T,) with offsets; floating or integer.
        y: As x.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        Five int64 tensors of shape (...), or (B,) with offsets.

    Raises:
        TypeError: An argument is no tensor, or of a dtype that has no place here.
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
    """Kendall's rank correlation of each row.

    With C concordant and D discordant of n0 = N (N - 1) / 2 pairs, n1 pairs tied in x, n2 tied in y, and m
    the smaller number of distinct values:

    - ``a``: (C - D) / n0
    - ``b``: (C - D) / sqrt((n0 - n1) (n0 - n2)), the default of :func:`scipy.stats.kendalltau`
    - ``c``: 2 (C - D) / (N^2 (m - 1) / m)

    The result has no gradient.

    Args:
        x: Shape (..., N), or (T,) with offsets; floating or integer.
        y: As x.
        variant: Which tau.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        float64 in [-1, 1], shape (...), or (B,) with offsets. NaN for N < 2, for a row with NaN, and, for b
        and c, where x or y is constant.

    Raises:
        TypeError: An argument is no tensor, or of a dtype that has no place here.
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
    """Kendall-tau distance of each row: the pairs that x and y order oppositely.

    0 for the same order, about 0.5 for unrelated ones and 1 for the reverse; (1 - tau) / 2 without ties. Tied
    pairs are not discordant. The result has no gradient.

    Args:
        x: Shape (..., N), or (T,) with offsets; floating or integer.
        y: As x.
        normalized: Divide by the number of pairs, N (N - 1) / 2.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        float64, shape (...), or (B,) with offsets. NaN for a row with NaN and, if normalized, for N < 2.

    Raises:
        TypeError: An argument is no tensor, or of a dtype that has no place here.
        ValueError: Shapes or devices differ, or offsets do not fit the values.

    Source:
        Kendall, Biometrika 30 (1938); as a measure of conflict, Liu et al., arXiv 2512.09212.

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
    """Test whether x and y are related, row by row, as :func:`scipy.stats.kendalltau` does for one.

    The p-value is that of concordant - discordant, and so the same for every variant. The exact distribution
    holds for rows without ties; ``auto`` takes it for N <= 33, or where at most one pair is discordant or at
    most one concordant, and else the normal approximation, in which ties are accounted for.

    On CUDA, ``auto`` and ``asymptotic`` do not wait for the device; the first call on a device puts tables there,
    so make one before a graph is captured. ``exact`` computes rows of N > 33 on the host, in O(N^3) for each
    length.

    Args:
        x: Shape (..., N), or (T,) with offsets; floating or integer.
        y: As x.
        variant: Which tau, as in :func:`kendall_tau`.
        alternative: Whether x and y are related at all, oppositely (``less``) or alike (``greater``).
        method: Which distribution.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        tau and pvalue, float64, shape (...), or (B,) with offsets. Both are NaN for N < 2 and for a row with NaN;
        so is the p-value of a constant row, and with ``exact`` that of a row with ties, where scipy raises.

    Raises:
        TypeError: An argument is no tensor, or of a dtype that has no place here.
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
    """Kendall's tau of every two rows of a matrix.

    The result has no gradient.

    Args:
        x: Shape (M, N); floating or integer.
        variant: Which tau, as in :func:`kendall_tau`.

    Returns:
        float64, shape (M, M), symmetric. Entries are NaN as in :func:`kendall_tau`: a row with NaN makes its row
        and its column so, and for b and c a constant row too, its place on the diagonal included.

    Raises:
        TypeError: x is no tensor, or of a dtype that has no place here.
        ValueError: x has not two dimensions, or the variant is unknown.

    Examples:
        >>> kendall_tau_matrix(torch.tensor([[1, 2, 3], [1, 3, 2], [3, 2, 1]]))
        tensor([[ 1.0000,  0.3333, -1.0000],
                [ 0.3333,  1.0000, -0.3333],
                [-1.0000, -0.3333,  1.0000]], dtype=torch.float64)
    """
    check_dtype("kendall_tau_matrix", ("x", x), NUMBERS)
    return torch.ops.shfcas.kendall_tau_matrix.default(x, variant)


def kendall_distance_matrix(x: Tensor) -> Tensor:
    """Kendall-tau distance of every two rows of a matrix: the fraction of pairs that they order oppositely.

    The result has no gradient.

    Args:
        x: Shape (M, N); floating or integer.

    Returns:
        float64 in [0, 1], shape (M, M), symmetric. NaN for N < 2, and in the row and column of a row with NaN.

    Raises:
        TypeError: x is no tensor, or of a dtype that has no place here.
        ValueError: x has not two dimensions.

    Examples:
        >>> kendall_distance_matrix(torch.tensor([[1, 2, 3], [3, 2, 1]]))
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    check_dtype("kendall_distance_matrix", ("x", x), NUMBERS)
    return torch.ops.shfcas.kendall_distance_matrix.default(x)


def pacs(rewards: Tensor, logprobs: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Proxy-policy alignment conflict score of each answer: z(reward) - z(logprob).

    z is taken per row with the population standard deviation. Positive where the reward model overvalues what
    the policy finds unlikely, negative where it undervalues what the policy likes; the conflict is the
    absolute value. Differentiable in both arguments, as often as wanted.

    Args:
        rewards: Shape (..., N), or (T,) with offsets; floating. Higher is better.
        logprobs: As rewards.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        The shape of rewards, in float64 for float64 and else in float32. A side with N < 2 or a standard
        deviation below 1e-6 is degenerate: its z is 0, and so is its gradient. A NaN or infinity makes its
        row NaN.

    Raises:
        TypeError: An argument is no tensor, or of a dtype that has no place here.
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
    """All conflict measures of each prompt's answers in one pass.

    What :func:`pacs`, :func:`kendall_distance` and :func:`kendall_tau` give, at about the price of one. The
    results have no gradient.

    Args:
        rewards: Shape (..., N), or (T,) with offsets; floating. Higher is better.
        logprobs: As rewards.
        offsets: Row limits of jagged rows, shape (B + 1,), int64.

    Returns:
        pacs in the shape of rewards; the other four with one entry per row, shape (...), or (B,) with
        offsets. NaN and degenerate rows as in the single functions; a NaN alone does not make a row
        degenerate.

    Raises:
        TypeError: An argument is no tensor, or of a dtype that has no place here.
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


def sequence_logprobs(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-probability of each sequence of tokens: the sum of log softmax(logits)[label] over its positions.

    Logits are read where they lie, whatever their strides, and once: nothing of the size of the logits is
    written. Differentiable (once) in the logits; the gradient of a -inf logit that is not the label is 0.

    Args:
        logits: Shape (B, T, V); floating.
        labels: Shape (B, T), int64 in [0, V) where the mask counts them, anything elsewhere.
        mask: Shape (B, T), bool: which positions count. All by default.

    Returns:
        Shape (B,), in float64 for float64 logits and else in float32. Minus infinity where the logit of a label
        is; NaN for a sequence with a NaN or +inf among the logits that count.

    Raises:
        TypeError: An argument is no tensor, or of a dtype that has no place here.
        ValueError: Shapes or devices differ, or a label that counts is outside [0, V); on CUDA, where looking
            would wait for the device, such a label makes its sequence NaN.

    Examples:
        >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
        >>> sequence_logprobs(logits, torch.tensor([[0, 1]]))
        tensor([-1.0064])
        >>> sequence_logprobs(logits, torch.tensor([[0, -100]]), torch.tensor([[True, False]]))
        tensor([-0.6931])
    """
    check_dtype("sequence_logprobs", ("logits", logits), FLOATING)
    check_dtype("sequence_logprobs", ("labels", labels), (torch.int64,))
    if mask is not None:
        check_dtype("sequence_logprobs", ("mask", mask), (torch.bool,))
    return torch.ops.shfcas.sequence_logprobs.default(logits, labels, mask)
