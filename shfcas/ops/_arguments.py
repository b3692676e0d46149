"""Argument checks of :mod:`shfcas.ops`: types, dtypes, and torch's jagged nested tensors.

A wrong type or dtype raises TypeError here. The ops themselves check shapes, devices and values.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NUMBERS = (*FLOATING, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Argument = tuple[str, Tensor]
"""A tensor and its name."""


def check_dtype(op: str, argument: Argument, dtypes: Collection[torch.dtype]) -> None:
    """Checks that the argument is a tensor of one of the dtypes."""
    name, value = argument
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        expected = f"one of the dtypes {', '.join(allowed)}" if len(allowed) > 1 else f"dtype {allowed[0]}"
        raise TypeError(f"{op}: {name}: expected {expected}, got {value.dtype}")


def row_arguments(
    op: str, first: Argument, second: Argument, offsets: Tensor | None, dtypes: Collection[torch.dtype]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checks two tensors of rows and returns them with their offsets, in the form that the ops take."""
    check_dtype(op, first, dtypes)
    check_dtype(op, second, NUMBERS)
    (name, x), (other_name, y) = first, second
    if y.dtype != x.dtype:
        raise TypeError(f"{op}: {other_name}: expected the dtype of {name}, {x.dtype}, got {y.dtype}")
    if offsets is not None:
        check_dtype(op, ("offsets", offsets), (torch.int64,))
    if not (x.is_nested or y.is_nested):
        return x, y, offsets

    if offsets is not None:
        raise ValueError(f"{op}: offsets: expected None with nested tensors, which have offsets; omit offsets")
    if not (x.is_nested and y.is_nested):
        raise TypeError(f"{op}: {other_name}: expected {name} and {other_name} both nested or both not, got one nested")
    for argument in (first, second):
        _check_jagged(op, *argument)
    # Equal shapes share one offsets tensor, so the values need not be compared.
    if x.shape != y.shape and not torch.equal(_offsets(x), _offsets(y)):
        raise ValueError(f"{op}: {other_name}: expected rows as long as those of {name}, got other offsets")
    return x.values(), y.values(), _offsets(x)


def rows_like(example: Tensor, values: Tensor) -> Tensor:
    """Returns one value per element, nested if the example is nested."""
    return torch.nested.nested_tensor_from_jagged(values, _offsets(example)) if example.is_nested else values


def _offsets(nested: Any) -> Tensor:  # Any: the type of Tensor does not declare offsets()
    return nested.offsets()


def _check_jagged(op: str, name: str, value: Any) -> None:
    if value.layout != torch.jagged:
        raise TypeError(
            f"{op}: {name}: expected a nested tensor with layout torch.jagged, got {value.layout}; "
            "make it with torch.nested.nested_tensor(rows, layout=torch.jagged)"
        )
    if value.dim() != 2:
        raise ValueError(f"{op}: {name}: expected a nested tensor of shape (B, jagged), got {tuple(value.shape)}")
    if value.lengths() is not None:
        raise ValueError(
            f"{op}: {name}: expected a nested tensor with consecutive rows in memory, got a view with "
            f"lengths of its own; pass {name}.contiguous()"
        )
