"""The ops ``token_statistics`` and ``token_statistics_backward`` in torch, for devices without a compiled kernel.

A build without nvcc has kernels for the CPU alone. With these, models on a GPU work there too, a few positions at a
time, so that no temporary is as large as the logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shfcas.ops import _library

assert _library  # its import defines the ops

_CHUNK = 1 << 24  # logits at a time


def _statistics(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Implements the op ``shfcas::token_statistics``; see csrc/cpu/token_statistics.cpp."""
    _check(logits, labels, mask, temperature)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logprobs, normalizer = logits.new_zeros(labels.shape, dtype=dtype), logits.new_zeros((*labels.shape, 2)).double()
    entropies = logits.new_zeros(labels.shape if entropy else 0, dtype=dtype)
    known = (labels >= 0) & (labels < logits.shape[2])
    for at in _portions(logits):
        x, shift = _shifted(logits[at], temperature, dtype)
        weight = x.exp()
        total = weight.sum(-1, dtype=torch.float64)
        chosen = x.gather(-1, labels[at].clamp(0, logits.shape[2] - 1)[:, None])[:, 0].double()
        logprobs[at] = torch.where(known[at], chosen - total.log(), torch.nan).to(dtype)
        normalizer[at] = torch.stack([shift.double(), torch.where(known[at], total, torch.nan)], -1)
        if entropy:
            weighted = (weight * x).masked_fill(weight == 0, 0).sum(-1, dtype=torch.float64)
            entropies[at] = (total.log() - weighted / total).to(dtype)
    if mask is not None:
        logprobs, normalizer = logprobs.where(mask, 0), normalizer.where(mask[..., None], 0)
        entropies = entropies.where(mask, 0) if entropy else entropies
    return logprobs.sum(-1, dtype=torch.float64).to(dtype), logprobs, entropies, normalizer


def _statistics_backward(
    gradient: Tensor,
    entropy_gradient: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    entropy: Tensor | None,
    normalizer: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Implements the op ``shfcas::token_statistics_backward``; labels outside the vocabulary are those of others."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    known = (labels >= 0) & (labels < logits.shape[2])
    for at in _portions(logits):
        shift, total = normalizer[at].unbind(-1)
        x = logits[at].to(dtype) / temperature - shift.to(dtype)[:, None]
        share = x.exp() / total.to(dtype)[:, None]
        g = gradient[at].to(dtype)
        part = -g[:, None] * share
        place = labels[at].clamp(0, logits.shape[2] - 1)[:, None]
        part.scatter_add_(-1, place, (g * known[at])[:, None])
        if entropy_gradient is not None and entropy is not None:
            spread = x - total.log().to(dtype)[:, None] + entropy[at].to(dtype)[:, None]
            part -= entropy_gradient[at].to(dtype)[:, None] * (share * spread).masked_fill(share == 0, 0)
        part /= temperature
        result[at] = part if mask is None else part.masked_fill(~mask[at][:, None], 0)
    return result


def _shifted(logits: Tensor, temperature: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns logits / temperature less the highest of each row, and that highest, or 0 for -inf."""
    x = logits.to(dtype) / temperature
    highest = x.amax(-1)
    shift = highest.masked_fill(highest == -torch.inf, 0)
    return x - shift[:, None], shift


def _portions(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Yields indices of some positions of one sequence."""
    sequences, length, vocabulary = logits.shape
    size = max(1, _CHUNK // max(1, vocabulary))
    return ((row, slice(begin, begin + size)) for row in range(sequences) for begin in range(0, length, size))


def _check(logits: Tensor, labels: Tensor, mask: Tensor | None, temperature: float) -> None:
    if logits.dim() != 3:
        raise ValueError(f"token_logprobs: logits: expected shape (B, T, V), got {tuple(logits.shape)}")
    for name, value in (("labels", labels), ("mask", mask)):
        if value is not None and value.shape != logits.shape[:2]:
            raise ValueError(f"token_logprobs: {name}: expected shape {logits.shape[:2]}, got {tuple(value.shape)}")
    if logits.shape[2] == 0 and labels.numel():
        raise ValueError("token_logprobs: logits: expected a vocabulary, got none")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"token_logprobs: temperature: expected a finite number above 0, got {temperature}")


torch.library.impl("shfcas::token_statistics", "CompositeExplicitAutograd", _statistics)
torch.library.impl("shfcas::token_statistics_backward", "CompositeExplicitAutograd", _statistics_backward)
