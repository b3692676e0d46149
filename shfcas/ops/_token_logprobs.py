"""Log-probabilities of tokens, from logits or from hidden states, on top of the compiled ops.

``token_statistics`` reads logits. ``linear_token_statistics`` computes them chunk by chunk from hidden states, and
again in the backward pass, so they never exist as a whole. The public ops return the results among these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from shfcas.ops import _library

assert _library  # its import defines the ops

_CHUNK = 1 << 21  # logits at a time
_CHUNK_ROWS = 512  # positions at a time: enough for fast matrix products

_statistics = torch.ops.shfcas.token_statistics.default
_statistics_backward = torch.ops.shfcas.token_statistics_backward.default


def _sequence_logprobs(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Implements the op ``shfcas::sequence_logprobs``; see :func:`shfcas.sequence_logprobs`."""
    try:
        return _statistics(logits, labels, mask)[0]
    except ValueError as error:
        raise ValueError(str(error).replace("token_logprobs", "sequence_logprobs", 1)) from None


def _token_logprobs(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Implements the op ``shfcas::token_logprobs``; the entropies are empty unless requested."""
    _, logprobs, entropies, _ = _statistics(logits, labels, mask, temperature, entropy)
    return logprobs, entropies


def _linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Implements the op ``shfcas::linear_token_logprobs``; the entropies are empty unless requested."""
    logprobs, entropies, _ = torch.ops.shfcas.linear_token_statistics.default(
        hidden, weight, labels, bias, temperature, entropy
    )
    return logprobs, entropies


def _linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes log-probabilities, entropies and normalizers of positions, chunk by chunk.

    With L_c the log-sum-exp of chunk c of the vocabulary, L that of all, and w_c = exp(L_c - L), the entropy is the
    sum over c of w_c (entropy_c - log w_c).
    """
    _check_linear(hidden, weight, labels, bias, temperature)
    rows, ids = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logprobs, normalizer = rows.new_empty(len(ids), dtype=dtype), rows.new_empty((len(ids), 2), dtype=torch.float64)
    entropies = rows.new_empty(len(ids) if entropy else 0, dtype=dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for begin, end in _row_chunks(len(ids)):
            local, parts = ids[begin:end], []
            label_logit = rows.new_zeros(end - begin, dtype=torch.float64)
            for first, last in _vocabulary_chunks(len(weight)):
                logits = _logits(rows[begin:end], weight, bias, first, last)
                place = (local - first).clamp(0, last - first - 1)
                _, _, spread, sums = _statistics(logits, place[None], None, temperature, entropy)
                parts.append((sums[0, :, 0] + sums[0, :, 1].log(), spread))
                inside = (local >= first) & (local < last)
                label_logit = torch.where(inside, logits[0].gather(1, place[:, None])[:, 0].double(), label_logit)
            totals = torch.stack([total for total, _ in parts])
            total = totals.logsumexp(0)
            # Labels outside the vocabulary occur only on CUDA: see sequence_logprobs.
            logprob = torch.where((local >= 0) & (local < len(weight)), label_logit / temperature - total, torch.nan)
            logprobs[begin:end] = logprob
            rounded = total.to(dtype).double()
            normalizer[begin:end, 0] = rounded
            normalizer[begin:end, 1] = torch.where(logprob.isnan(), torch.nan, (total - rounded).exp())
            if entropy:
                share = (totals - total).exp()
                terms = torch.cat([spread for _, spread in parts]).double() - (totals - total)
                entropies[begin:end] = torch.where(share == 0, 0, share * terms).sum(0)
    entropies = entropies.reshape(labels.shape) if entropy else entropies
    return logprobs.reshape(labels.shape), entropies, normalizer.reshape(*labels.shape, 2)


def _linear_token_statistics_backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the wanted gradients of hidden, weight and bias; the others are empty."""
    rows, ids = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    # Sums over chunks are float32 for float16 and bfloat16.
    to_hidden = rows.new_zeros(rows.shape if wanted[0] else 0, dtype=wide)
    to_weight = weight.new_empty(weight.shape if wanted[1] else 0)
    to_bias = weight.new_empty(len(weight) if wanted[2] else 0)
    g = gradient.reshape(1, -1)
    h, spread = (part if part is None else part.reshape(1, -1) for part in (entropy_gradient, entropy))
    sums = normalizer.reshape(1, -1, 2)
    with torch.autocast(hidden.device.type, enabled=False):
        for first, last in _vocabulary_chunks(len(weight)):
            chunk_to_weight = weight.new_zeros((last - first, weight.shape[1]) if wanted[1] else 0, dtype=wide)
            chunk_to_bias = weight.new_zeros(last - first if wanted[2] else 0, dtype=wide)
            for begin, end in _row_chunks(len(ids)):
                at = (slice(None), slice(begin, end))
                logits = _logits(rows[begin:end], weight, bias, first, last)
                to_logits = _statistics_backward(
                    g[at],
                    None if h is None else h[at],
                    logits,
                    (ids[begin:end] - first)[None],
                    None,
                    None if h is None or spread is None else spread[at],
                    sums[at],
                    temperature,
                )[0]
                if wanted[0]:
                    to_hidden[begin:end] += to_logits @ weight[first:last]
                if wanted[1]:
                    chunk_to_weight += to_logits.t() @ rows[begin:end]
                if wanted[2]:
                    chunk_to_bias += to_logits.sum(0, dtype=wide)
            if wanted[1]:
                to_weight[first:last] = chunk_to_weight
            if wanted[2]:
                to_bias[first:last] = chunk_to_bias
    to_hidden = to_hidden.to(hidden.dtype)
    return to_hidden.reshape(hidden.shape) if wanted[0] else to_hidden, to_weight, to_bias


def _row_chunks(rows: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + _CHUNK_ROWS, rows)) for begin in range(0, rows, _CHUNK_ROWS))


def _vocabulary_chunks(size: int) -> Iterator[tuple[int, int]]:
    step = _CHUNK // _CHUNK_ROWS
    return ((first, min(first + step, size)) for first in range(0, size, step))


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None, first: int, last: int) -> Tensor:
    """Returns a chunk of the logits, (1, rows, last - first), in the dtype in which a model computes them."""
    return torch.nn.functional.linear(rows, weight[first:last], None if bias is None else bias[first:last])[None]


def _check_linear(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, temperature: float) -> None:
    def fail(argument: str, expected: str, got: object) -> None:
        raise ValueError(f"linear_token_logprobs: {argument}: expected {expected}, got {got}")

    if hidden.dim() < 1:
        fail("hidden", "at least 1 dimension", "a scalar")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        fail("weight", f"shape (V, {hidden.shape[-1]}), as the last dimension of hidden", tuple(weight.shape))
    if labels.shape != hidden.shape[:-1]:
        fail(
            "labels", f"the shape of hidden without its last dimension, {tuple(hidden.shape[:-1])}", tuple(labels.shape)
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        fail("bias", f"shape {tuple(weight.shape[:1])}", tuple(bias.shape))
    for name, other in (("weight", weight), ("labels", labels), ("bias", bias)):
        if other is not None and other.device != hidden.device:
            fail(name, f"the device of hidden, {hidden.device}", other.device)
    if not (temperature > 0 and math.isfinite(temperature)):
        fail("temperature", "a finite number above 0", temperature)
    if len(weight) == 0 and labels.numel() > 0:
        fail("weight", "at least one row", "none")
    if not labels.is_cuda and labels.numel() > 0 and not 0 <= int(labels.min()) <= int(labels.max()) < len(weight):
        fail("labels", f"values in [0, {len(weight)})", f"{int(labels.min())} to {int(labels.max())}")


for _name in ("sequence_logprobs", "token_logprobs", "linear_token_logprobs"):
    torch.library.impl(f"shfcas::{_name}", "CompositeImplicitAutograd", globals()[f"_{_name}"])
for _name in ("linear_token_statistics", "linear_token_statistics_backward"):
    torch.library.impl(f"shfcas::{_name}", "CompositeExplicitAutograd", globals()[f"_{_name}"])
