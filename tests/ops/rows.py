"""Rows that the tests of the ops share."""

import torch
from torch import Tensor

# Around every change of kernel: empty, one, a pair, a block of one row a lane, its limit, merge blocks.
SIZES = (0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200)
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def make_rows(shape: tuple[int, ...], dtype: torch.dtype, seed: int, distinct: int | None = None) -> Tensor:
    """Random rows; few distinct values make many ties."""
    generator = torch.Generator().manual_seed(seed)
    if distinct is not None or not dtype.is_floating_point:
        return torch.randint(0, distinct or 100, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make_jagged(lengths: list[int], dtype: torch.dtype, seed: int, distinct: int | None = None):
    """x, y and offsets of rows of the given lengths."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = int(offsets[-1])
    return make_rows((total,), dtype, seed, distinct), make_rows((total,), dtype, seed + 1, distinct), offsets


def assert_all_equal(actual, expected) -> None:
    """Equal tensors, field by field, in value, dtype and shape; NaN equals NaN."""
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
