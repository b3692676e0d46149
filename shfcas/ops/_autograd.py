"""Gradients of the ops, registered at import: after the first torch.compile it would be too late."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import register_autograd

from shfcas.ops import _library

assert _library  # its import defines the ops

_MIN_STD = 1e-6  # as in csrc/core/pacs.h: rows with a smaller standard deviation are degenerate


def _save_inputs(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


# PACS. The first derivative is an op. The second is written in torch, which can differentiate it further.


def _pacs_gradient(ctx, gradient):  # type: ignore[no-untyped-def]
    rewards, logprobs, offsets = ctx.saved_tensors
    to_rewards, to_logprobs = torch.ops.shfcas.pacs_backward.default(gradient, rewards, logprobs, offsets)
    return to_rewards.to(rewards.dtype), to_logprobs.to(logprobs.dtype), None


def _pacs_second_gradient(ctx, to_rewards, to_logprobs):  # type: ignore[no-untyped-def]
    gradient, rewards, logprobs, offsets = ctx.saved_tensors
    mean = _row_mean(rewards, offsets)
    rewards_gradient, rewards_values = _z_second_gradient(to_rewards, gradient, rewards, mean)
    logprobs_gradient, logprobs_values = _z_second_gradient(to_logprobs, gradient, logprobs, mean)
    return (
        (rewards_gradient - logprobs_gradient).to(gradient.dtype),
        rewards_values.to(rewards.dtype),
        -logprobs_values.to(logprobs.dtype),
        None,
    )


def _row_mean(values: Tensor, offsets: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Returns a function that replaces each element by the mean of its row."""
    if offsets is None:
        return lambda v: v.mean(-1, keepdim=True).expand_as(v)
    lengths = offsets.diff()
    rows = torch.arange(len(lengths), device=values.device)
    rows = rows.repeat_interleave(lengths, output_size=values.shape[0])
    return lambda v: (v.new_zeros(len(lengths)).index_add(0, rows, v) / lengths.clamp(min=1)).index_select(0, rows)


def _z_second_gradient(
    cotangent: Tensor, gradient: Tensor, values: Tensor, mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the derivatives of F = sum_i cotangent_i G_i with respect to gradient and values.

    G, the result of pacs_backward, is P(gradient) / std with P(u) = u - mean(u) - z mean(u z). P is symmetric,
    so exchanging cotangent and gradient leaves F unchanged. The derivative in gradient is therefore
    P(cotangent) / std.

    For the derivative in values v, use d std / dv_i = z_i / N and d mean(u z) / dv_i = P(u)_i / (N std). Write
    F = N q / std, where q = mean(cotangent gradient) - mean(cotangent) mean(gradient) - a b, a = mean(cotangent z)
    and b = mean(gradient z). Then dF / dv = -(b P(cotangent) + a P(gradient) + q z) / std^2.
    """
    cotangent, gradient, values = cotangent.double(), gradient.double(), values.double()
    centred = values - mean(values)
    variance = mean(centred.square())
    degenerate = variance.sqrt() < _MIN_STD
    scale = torch.where(degenerate, 0, torch.where(degenerate, 1, variance).rsqrt())
    z = centred * scale

    a, b = mean(cotangent * z), mean(gradient * z)
    projected_cotangent = cotangent - mean(cotangent) - z * a
    projected_gradient = gradient - mean(gradient) - z * b
    q = mean(cotangent * gradient) - mean(cotangent) * mean(gradient) - a * b
    to_values = -(b * projected_cotangent + a * projected_gradient + q * z) * scale.square()
    return projected_cotangent * scale, to_values


register_autograd("shfcas::pacs", _pacs_gradient, setup_context=_save_inputs)
register_autograd("shfcas::pacs_backward", _pacs_second_gradient, setup_context=_save_inputs)


# sequence_logprobs.


def _sequence_logprobs_gradient(ctx, gradient):  # type: ignore[no-untyped-def]
    return torch.ops.shfcas.sequence_logprobs_backward.default(gradient, *ctx.saved_tensors), None, None


def _no_second_gradient(ctx, *gradients):  # type: ignore[no-untyped-def]
    raise NotImplementedError("sequence_logprobs: expected one differentiation, got two; it is differentiable once")


register_autograd("shfcas::sequence_logprobs", _sequence_logprobs_gradient, setup_context=_save_inputs)
register_autograd("shfcas::sequence_logprobs_backward", _no_second_gradient)


# Rank statistics have no gradient, and neither have the scores that conflict_scores computes with them.


def _mark_without_gradient(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _without_gradient(ctx, *gradients):  # type: ignore[no-untyped-def]
    return (None,) * len(ctx.needs_input_grad)


for _op in (
    "kendall_counts",
    "kendall_tau",
    "kendall_distance",
    "kendall_tau_matrix",
    "kendall_distance_matrix",
    "kendall_statistics",
    "kendall_test",
    "conflict_scores",
):
    register_autograd(f"shfcas::{_op}", _without_gradient, setup_context=_mark_without_gradient)
