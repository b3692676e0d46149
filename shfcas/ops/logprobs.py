"""Log-probabilities of tokens and sequences from logits, or from what logits are made of."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from shfcas.ops import _autograd, _fake_kernels, _token_logprobs, _token_statistics, _vmap
from shfcas.ops._arguments import FLOATING, check_dtype

assert _autograd and _fake_kernels and _token_logprobs and _token_statistics and _vmap  # their import completes the ops


class TokenLogprobs(NamedTuple):
    """Log-probabilities of tokens, with the entropy of the distribution from which each was drawn."""

    logprobs: Tensor
    """Per position, in nats."""
    entropy: Tensor
    """Per position, in nats."""


def sequence_logprobs(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes the log-probability of each sequence: the sum of log softmax(logits)[label] over its positions.

    The sum of :func:`token_logprobs`, rounded once. Logits of any strides are read once, in place, without a
    temporary of their size. Differentiable (once) in the logits. The gradient of a -inf logit that is not the label
    is 0.

    Args:
        logits: Shape (B, T, V); floating.
        labels: Shape (B, T), int64; in [0, V) at unmasked positions, any value elsewhere.
        mask: Shape (B, T), bool; True at positions that count. All by default.

    Returns:
        Shape (B,), float64 for float64 logits, otherwise float32. Minus infinity if the logit of a counted label
        is minus infinity; NaN for a sequence with a NaN or +inf among the logits that count.

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices differ, or a counted label is outside [0, V). On CUDA, where checking would
            synchronise with the device, such a label makes its sequence NaN instead.

    Examples:
        >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
        >>> sequence_logprobs(logits, torch.tensor([[0, 1]]))
        tensor([-1.0064])
        >>> sequence_logprobs(logits, torch.tensor([[0, -100]]), torch.tensor([[True, False]]))
        tensor([-0.6931])
    """
    _check_tokens("sequence_logprobs", logits, labels, mask)
    return torch.ops.shfcas.sequence_logprobs.default(logits, labels, mask)


@overload
def token_logprobs(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropy: Literal[False] = False,
) -> Tensor: ...


@overload
def token_logprobs(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0, entropy: bool
) -> Tensor | TokenLogprobs: ...


def token_logprobs(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Tensor | TokenLogprobs:
    """Computes the log-probability of each token: log softmax(logits / temperature)[label].

    Logits of any strides are read once, in place, without a temporary of their size. The backward pass reads them once
    more and writes their gradient. Differentiable (once) in the logits. A -inf logit has probability 0 and adds nothing
    to the entropy; its gradient is 0 unless it is the label.

    Args:
        logits: Shape (B, T, V); floating.
        labels: Shape (B, T), int64; in [0, V) at unmasked positions, any value elsewhere.
        mask: Shape (B, T), bool; True at positions that count. All by default.
        temperature: Divides the logits.
        entropy: Also compute the entropy of softmax(logits / temperature), which is differentiable too.

    Returns:
        Log-probabilities of shape (B, T), float64 for float64 logits, otherwise float32; 0 where the mask is False.
        With entropy, log-probabilities and entropies. Minus infinity if the label's logit is minus infinity; NaN for a
        position with a NaN or +inf among its logits.

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices differ, the temperature is not above 0, or a counted label is outside [0, V). On
            CUDA, where checking would synchronise with the device, such a label makes its log-probability NaN instead.

    Examples:
        >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
        >>> token_logprobs(logits, torch.tensor([[0, 1]]))
        tensor([[-0.6931, -0.3133]])
        >>> token_logprobs(logits, torch.tensor([[0, 1]]), temperature=0.5, entropy=True).entropy
        tensor([[0.6931, 0.3653]])
    """
    _check_tokens("token_logprobs", logits, labels, mask)
    result = torch.ops.shfcas.token_logprobs.default(logits, labels, mask, temperature, entropy)
    return TokenLogprobs(*result) if entropy else result[0]


@overload
def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropy: Literal[False] = False,
) -> Tensor: ...


@overload
def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropy: bool,
) -> Tensor | TokenLogprobs: ...


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Tensor | TokenLogprobs:
    """Computes :func:`token_logprobs` of the logits hidden @ weight.T + bias, which never exist as a whole.

    Logits are computed in chunks of 512 positions and 4096 tokens of the vocabulary, and again in the backward pass. So
    the memory beyond results and gradients is that of a few chunks, however large the vocabulary is. Logits are rounded
    to the dtype of hidden, as in a model. Sums over chunks are float32, or float64 for float64. Differentiable (once,
    in reverse mode) in hidden, weight and bias.

    Args:
        hidden: Shape (..., H); floating. Select positions beforehand: ``hidden[mask]``.
        weight: Shape (V, H); dtype of hidden.
        labels: Shape (...), int64; in [0, V).
        bias: Shape (V,); dtype of hidden.
        temperature: Divides the logits.
        entropy: Also compute the entropy of softmax(logits / temperature), which is differentiable too.

    Returns:
        Log-probabilities of shape (...), float64 for float64, otherwise float32. With entropy, log-probabilities and
        entropies. Special values are handled as in :func:`token_logprobs`.

    Raises:
        TypeError: An argument is no tensor, or its dtype is not supported.
        ValueError: Shapes or devices do not fit, the temperature is not above 0, or a label is outside [0, V). On CUDA,
            such a label makes its log-probability NaN instead.

    Examples:
        >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.eye(2)
        >>> linear_token_logprobs(hidden, weight, torch.tensor([0]))
        tensor([-0.3133])
    """
    op = "linear_token_logprobs"
    check_dtype(op, ("hidden", hidden), FLOATING)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            check_dtype(op, (name, value), (hidden.dtype,))
    check_dtype(op, ("labels", labels), (torch.int64,))
    result = torch.ops.shfcas.linear_token_logprobs.default(hidden, weight, labels, bias, temperature, entropy)
    return TokenLogprobs(*result) if entropy else result[0]


def _check_tokens(op: str, logits: Tensor, labels: Tensor, mask: Tensor | None) -> None:
    check_dtype(op, ("logits", logits), FLOATING)
    check_dtype(op, ("labels", labels), (torch.int64,))
    if mask is not None:
        check_dtype(op, ("mask", mask), (torch.bool,))
