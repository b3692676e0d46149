"""What the functions of :mod:`shfcas.ops` accept: types and dtypes, and torch's jagged nested tensors.

A wrong type or dtype is a TypeError here; shapes, devices and values are checked by the ops themselves.
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
    """The argument is a tensor of one of the dtypes."""
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
    """Two tensors of rows and their offsets, as the ops take them."""
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
        raise ValueError(f"{op}: offsets: expected none beside nested tensors, which have their own")
    if not (x.is_nested and y.is_nested):
        raise TypeError(f"{op}: {other_name}: expected a nested tensor exactly where {name} is one")
    for argument in (first, second):
        _check_jagged(op, *argument)
    # Equal shapes share one offsets tensor, which is known without looking at it.
    if x.shape != y.shape and not torch.equal(_offsets(x), _offsets(y)):
        raise ValueError(f"{op}: {other_name}: expected rows as long as those of {name}, got other offsets")
    return x.values(), y.values(), _offsets(x)


def rows_like(example: Tensor, values: Tensor) -> Tensor:
    """One value an element, in the form that the example's elements came in."""
    return torch.nested.nested_tensor_from_jagged(values, _offsets(example)) if example.is_nested else values


def _offsets(nested: Any) -> Tensor:  # a method that Tensor itself is not declared to have
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
            f"{op}: {name}: expected a nested tensor whose rows follow each other in memory, got a view with "
            f"lengths of its own; pass {name}.contiguous()"
        )
