"""Rank agreement and proxy-policy conflict, row by row.

Every function takes two tensors of one shape, dtype and device. Rows are the last dimension of ``(..., N)``;
or, with ``offsets`` of shape ``(B + 1,)`` and dtype int64, row ``b`` of flat ``(T,)`` values is
``values[offsets[b]:offsets[b + 1]]``, the layout of Arrow lists and of torch's jagged tensors. Offsets start
at 0, never decrease and end at ``T``. On CUDA, where looking at them would wait for the device, bad offsets
are clamped to the values instead of refused.

float16 and bfloat16 are widened to float32, which changes no comparison. A NaN makes its own row invalid and
no other. The same functions are ops, ``torch.ops.shfcas.*``, and compile with ``torch.compile``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shfcas import _library

assert _library  # its import registers the ops

_FLOATING = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_NUMBERS = _FLOATING | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


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
    _check("kendall_counts", ("x", x), ("y", y), offsets, _NUMBERS)
    return KendallCounts(*torch.ops.shfcas.kendall_counts.default(x, y, offsets))


def kendall_tau(
    x: Tensor, y: Tensor, *, variant: Literal["a", "b", "c"] = "b", offsets: Tensor | None = None
) -> Tensor:
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
    _check("kendall_tau", ("x", x), ("y", y), offsets, _NUMBERS)
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
    _check("kendall_distance", ("x", x), ("y", y), offsets, _NUMBERS)
    return torch.ops.shfcas.kendall_distance.default(x, y, normalized, offsets)


def pacs(rewards: Tensor, logprobs: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Proxy-policy alignment conflict score of each answer: z(reward) - z(logprob).

    z is taken per row with the population standard deviation. Positive where the reward model overvalues what
    the policy finds unlikely, negative where it undervalues what the policy likes; the conflict is the
    absolute value. Differentiable (once) in both arguments.

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
    _check("pacs", ("rewards", rewards), ("logprobs", logprobs), offsets, _FLOATING)
    return torch.ops.shfcas.pacs.default(rewards, logprobs, offsets)


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
    _check("conflict_scores", ("rewards", rewards), ("logprobs", logprobs), offsets, _FLOATING)
    return ConflictScores(*torch.ops.shfcas.conflict_scores.default(rewards, logprobs, offsets))


def _check(
    op: str,
    first: tuple[str, Tensor],
    second: tuple[str, Tensor],
    offsets: Tensor | None,
    dtypes: frozenset[torch.dtype],
) -> None:
    """Types and dtypes, which Python reports as TypeError; the op itself checks all else."""
    for name, value in (first, second) if offsets is None else (first, second, ("offsets", offsets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    dtype = first[1].dtype
    if dtype not in dtypes:
        allowed = ", ".join(sorted(str(allowed).removeprefix("torch.") for allowed in dtypes))
        raise TypeError(f"{op}: {first[0]}: expected one of the dtypes {allowed}, got {dtype}")
    if second[1].dtype != dtype:
        raise TypeError(f"{op}: {second[0]}: expected the dtype of {first[0]}, {dtype}, got {second[1].dtype}")
    if offsets is not None and offsets.dtype != torch.int64:
        raise TypeError(f"{op}: offsets: expected dtype torch.int64, got {offsets.dtype}")


# Fake kernels: the shapes and dtypes that torch.compile plans with.


def _row_shape(x: Tensor, offsets: Tensor | None) -> torch.Size | tuple[int, ...]:
    return x.shape[:-1] if offsets is None else (offsets.shape[0] - 1,)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.register_fake("shfcas::kendall_counts")
def _(x: Tensor, y: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(_row_shape(x, offsets), dtype=torch.int64) for _ in range(5))


@torch.library.register_fake("shfcas::kendall_tau")
def _(x: Tensor, y: Tensor, variant: str = "b", offsets: Tensor | None = None) -> Tensor:
    return x.new_empty(_row_shape(x, offsets), dtype=torch.float64)


@torch.library.register_fake("shfcas::kendall_distance")
def _(x: Tensor, y: Tensor, normalized: bool = True, offsets: Tensor | None = None) -> Tensor:
    return x.new_empty(_row_shape(x, offsets), dtype=torch.float64)


@torch.library.register_fake("shfcas::pacs")
def _(rewards: Tensor, logprobs: Tensor, offsets: Tensor | None = None) -> Tensor:
    return rewards.new_empty(rewards.shape, dtype=_compute_dtype(rewards))


@torch.library.register_fake("shfcas::pacs_backward")
def _(gradient: Tensor, rewards: Tensor, logprobs: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(rewards)
    return rewards.new_empty(rewards.shape, dtype=dtype), rewards.new_empty(rewards.shape, dtype=dtype)


@torch.library.register_fake("shfcas::conflict_scores")
def _(rewards: Tensor, logprobs: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, ...]:
    rows, dtype = _row_shape(rewards, offsets), _compute_dtype(rewards)
    return (
        rewards.new_empty(rewards.shape, dtype=dtype),
        rewards.new_empty(rows, dtype=dtype),
        rewards.new_empty(rows, dtype=torch.float64),
        rewards.new_empty(rows, dtype=torch.float64),
        rewards.new_empty(rows, dtype=torch.bool),
    )


# Autograd, registered at import: after a first compilation it would come too late.


def _save_pacs(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _pacs_gradient(ctx, gradient):  # type: ignore[no-untyped-def]
    rewards, logprobs, offsets = ctx.saved_tensors
    to_rewards, to_logprobs = torch.ops.shfcas.pacs_backward.default(gradient, rewards, logprobs, offsets)
    return to_rewards.to(rewards.dtype), to_logprobs.to(logprobs.dtype), None


def _no_second_gradient(ctx, *gradients):  # type: ignore[no-untyped-def]
    raise NotImplementedError("shfcas.pacs is differentiable once; its gradient has no gradient")


def _mark_without_gradient(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _without_gradient(ctx, *gradients):  # type: ignore[no-untyped-def]
    return (None,) * len(ctx.needs_input_grad)


torch.library.register_autograd("shfcas::pacs", _pacs_gradient, setup_context=_save_pacs)
torch.library.register_autograd("shfcas::pacs_backward", _no_second_gradient)
for _op in ("kendall_counts", "kendall_tau", "kendall_distance", "conflict_scores"):
    torch.library.register_autograd(f"shfcas::{_op}", _without_gradient, setup_context=_mark_without_gradient)
