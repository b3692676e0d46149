"""Shapes and dtypes of the results, for torch.compile, torch.export and meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import register_fake

from shfcas.ops import _library

assert _library  # its import defines the ops


def _row_shape(x: Tensor, offsets: Tensor | None) -> torch.Size | tuple[int, ...]:
    return x.shape[:-1] if offsets is None else (offsets.shape[0] - 1,)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@register_fake("shfcas::kendall_counts")
def _(x: Tensor, y: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(_row_shape(x, offsets), dtype=torch.int64) for _ in range(5))


@register_fake("shfcas::kendall_tau")
def _(x: Tensor, y: Tensor, variant: str = "b", offsets: Tensor | None = None) -> Tensor:
    return x.new_empty(_row_shape(x, offsets), dtype=torch.float64)


@register_fake("shfcas::kendall_distance")
def _(x: Tensor, y: Tensor, normalized: bool = True, offsets: Tensor | None = None) -> Tensor:
    return x.new_empty(_row_shape(x, offsets), dtype=torch.float64)


@register_fake("shfcas::kendall_tau_matrix")
def _(x: Tensor, variant: str = "b") -> Tensor:
    return x.new_empty((x.shape[0], x.shape[0]), dtype=torch.float64)


@register_fake("shfcas::kendall_distance_matrix")
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[0]), dtype=torch.float64)


@register_fake("shfcas::kendall_statistics")
def _(x: Tensor, y: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, ...]:
    dtypes = [torch.int64] * 6 + [torch.float64] * 2
    return tuple(x.new_empty(_row_shape(x, offsets), dtype=dtype) for dtype in dtypes)


@register_fake("shfcas::kendall_test")
def _(
    x: Tensor,
    y: Tensor,
    variant: str = "b",
    alternative: str = "two-sided",
    method: str = "auto",
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    shape = _row_shape(x, offsets)
    return x.new_empty(shape, dtype=torch.float64), x.new_empty(shape, dtype=torch.float64)


@register_fake("shfcas::pacs")
def _(rewards: Tensor, logprobs: Tensor, offsets: Tensor | None = None) -> Tensor:
    return rewards.new_empty(rewards.shape, dtype=_compute_dtype(rewards))


@register_fake("shfcas::pacs_backward")
def _(gradient: Tensor, rewards: Tensor, logprobs: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(rewards)
    return rewards.new_empty(rewards.shape, dtype=dtype), rewards.new_empty(rewards.shape, dtype=dtype)


@register_fake("shfcas::conflict_scores")
def _(rewards: Tensor, logprobs: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, ...]:
    rows, dtype = _row_shape(rewards, offsets), _compute_dtype(rewards)
    return (
        rewards.new_empty(rewards.shape, dtype=dtype),
        rewards.new_empty(rows, dtype=dtype),
        rewards.new_empty(rows, dtype=torch.float64),
        rewards.new_empty(rows, dtype=torch.float64),
        rewards.new_empty(rows, dtype=torch.bool),
    )


@register_fake("shfcas::token_statistics")
def _(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, ...]:
    dtype, positions = _compute_dtype(logits), logits.shape[:2]
    return (
        logits.new_empty(logits.shape[:1], dtype=dtype),
        logits.new_empty(positions, dtype=dtype),
        logits.new_empty(positions if entropy else (0,), dtype=dtype),
        logits.new_empty((*positions, 2), dtype=torch.float64),
    )


@register_fake("shfcas::token_statistics_backward")
def _(
    gradient: Tensor,
    entropy_gradient: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    entropy: Tensor | None,
    normalizer: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    return logits.new_empty(logits.shape)


@register_fake("shfcas::linear_token_statistics")
def _(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, ...]:
    dtype, positions = _compute_dtype(hidden), hidden.shape[:-1]
    return (
        hidden.new_empty(positions, dtype=dtype),
        hidden.new_empty(positions if entropy else (0,), dtype=dtype),
        hidden.new_empty((*positions, 2), dtype=torch.float64),
    )


@register_fake("shfcas::linear_token_statistics_backward")
def _(
    gradient: Tensor,
    entropy_gradient: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    entropy: Tensor | None,
    normalizer: Tensor,
    temperature: float,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    shapes: tuple[tuple[int, ...], ...] = (hidden.shape, weight.shape, weight.shape[:1])
    return tuple(hidden.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True))
