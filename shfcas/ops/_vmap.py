"""Rules of the ops for torch.vmap and torch.func: one call for all samples where the layout allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import register_vmap

from shfcas.ops import _token_logprobs

assert _token_logprobs  # its import defines the ops


def _in_front(values: Any, dim: int | None, samples: int) -> Any:
    """Returns the argument with the dimension of the samples in front."""
    if not isinstance(values, Tensor):
        return values
    return values.expand(samples, *values.shape) if dim is None else values.movedim(dim, 0)


def _map(function: Callable[[Tensor], Any], result: Any) -> Any:
    return tuple(map(function, result)) if isinstance(result, tuple | list) else function(result)


def _one_by_one(op: Any) -> Callable:
    """Returns the rule that calls the op once per sample."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        inputs = [_in_front(*pair, info.batch_size) for pair in zip(args, in_dims, strict=True)]
        calls = [
            op(*(value[k] if isinstance(value, Tensor) else value for value in inputs)) for k in range(info.batch_size)
        ]
        result = (
            torch.stack(calls) if isinstance(calls[0], Tensor) else tuple(map(torch.stack, zip(*calls, strict=True)))
        )
        return result, _map(lambda _: 0, result)

    return rule


def _rows(op: Any) -> Callable:
    """Returns the rule for ops of rows: samples are more rows, unless they have offsets."""
    names = [argument.name for argument in op._schema.arguments]

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        if dict(zip(names, args, strict=False)).get("offsets") is not None:
            return _one_by_one(op)(info, in_dims, *args)
        result = op(*(_in_front(*pair, info.batch_size) for pair in zip(args, in_dims, strict=True)))
        return result, _map(lambda _: 0, result)

    return rule


def _sequences(op: Any) -> Callable:
    """Returns the rule for ops of sequences: samples are more sequences."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        inputs = [_in_front(*pair, info.batch_size) for pair in zip(args, in_dims, strict=True)]
        sequences = next(value.shape[1] for value in inputs if isinstance(value, Tensor))
        result = op(*(value.flatten(0, 1) if isinstance(value, Tensor) else value for value in inputs))
        absent = _map(lambda part: part.shape[0] != info.batch_size * sequences, result)  # entropies not requested
        split = _map(
            lambda part: (
                part.unflatten(0, (info.batch_size, sequences))
                if part.shape[0] == info.batch_size * sequences
                else part
            ),
            result,
        )
        return split, _map(lambda missing: None if missing else 0, absent)

    return rule


for _rule, _names in {
    _rows: (
        "kendall_counts",
        "kendall_tau",
        "kendall_distance",
        "kendall_statistics",
        "kendall_test",
        "pacs",
        "pacs_backward",
        "conflict_scores",
    ),
    _sequences: ("token_statistics", "token_statistics_backward", "sequence_logprobs", "token_logprobs"),
    _one_by_one: (
        "kendall_tau_matrix",
        "kendall_distance_matrix",
        "linear_token_statistics",
        "linear_token_statistics_backward",
        "linear_token_logprobs",
    ),
}.items():
    for _name in _names:
        register_vmap(f"shfcas::{_name}", _rule(getattr(torch.ops.shfcas, _name).default))
