"""Derivatives of the ops, in both directions, and their rules for vmap.

Registered at import: after the first torch.compile it would be too late. torch.library.register_autograd has no
forward mode and refuses torch.func. So each op gets the autograd kernel that register_autograd would make, with `jvp`
besides, and in the form in which torch.func can nest it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.library import Library, fallthrough_kernel

from shfcas.ops import _token_logprobs

assert _token_logprobs  # its import defines the ops

_MIN_STD = 1e-6  # as in csrc/core/pacs.h: rows with a smaller standard deviation are degenerate

_library = Library("shfcas", "IMPL")


@contextmanager
def _outer_transforms() -> Iterator[None]:
    """Enables derivatives inside of a torch.autograd.Function: outer transforms of torch.func need them."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def _register_derivatives(name: str, save: Callable, backward: Callable, jvp: Callable) -> None:
    """Registers the derivatives of an op.

    Args:
        name: Name of the op.
        save: `save(ctx, inputs, output)`, as `setup_context` of torch.autograd.Function.
        backward: `backward(ctx, *gradients)` returns one gradient or None per input.
        jvp: `jvp(ctx, saved, *tangents)` returns one tangent or None per output.

    Gradients and tangents may be None: 0.
    """
    op = getattr(torch.ops.shfcas, name).default
    redispatch, after_autograd = op.redispatch, torch._C._after_autograd_keyset
    is_grad_enabled, any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad
    defaults = tuple(argument.default_value for argument in op._schema.arguments)

    def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
        with _outer_transforms(), torch._C._AutoDispatchBelowAutograd():
            output = redispatch(keyset & after_autograd, *inputs)
        ctx.set_materialize_grads(False)
        save(ctx, inputs + defaults[len(inputs) :], output)  # the dispatcher leaves out arguments equal to the default
        return tuple(output) if isinstance(output, list) else output

    def tangent(ctx: Any, _: None, *tangents: Any) -> Any:
        with _outer_transforms():
            saved = [part if part is None else forward_ad.unpack_dual(part).primal for part in ctx.saved_tensors]
            return jvp(ctx, saved, *tangents, *(None,) * (len(defaults) - len(tangents)))

    methods: dict[str, Callable] = {
        "forward": forward,
        "backward": lambda ctx, *gradients: (None, *backward(ctx, *gradients)),
        "jvp": tangent,
    }
    function = type(f"Derivatives_{name}", (_SingleLevelFunction,), {k: staticmethod(v) for k, v in methods.items()})

    def kernel(keyset: Any, *inputs: Any) -> Any:
        if (is_grad_enabled() and any_requires_grad(*inputs)) or forward_ad._current_level >= 0:
            with enable_single_level_autograd_function():
                return function.apply(keyset, *inputs)  # type: ignore[attr-defined]
        return redispatch(keyset & after_autograd, *inputs)

    _library.impl(name, kernel, "Autograd", with_keyset=True)


def _save(ctx: Any, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _save_inputs(ctx: Any, inputs: tuple, output: Any) -> None:
    _save(ctx, *inputs)


def _sum(*terms: Tensor | None) -> Tensor | None:
    """Returns the sum of the terms that are not None; None without any."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


# PACS. The first derivative is an op. The second is written in torch, which can differentiate it further. The Jacobian
# of the z-scores of a row is symmetric: one op computes both the gradients and the tangents.


def _pacs_backward(gradient: Tensor, rewards: Tensor, logprobs: Tensor, offsets: Tensor | None) -> Any:
    return torch.ops.shfcas.pacs_backward.default(gradient, rewards, logprobs, offsets)


def _pacs_gradient(ctx: Any, gradient: Tensor | None) -> tuple:
    rewards, logprobs, offsets = ctx.saved_tensors
    if gradient is None:
        return None, None, None
    to_rewards, to_logprobs = _pacs_backward(gradient, rewards, logprobs, offsets)
    return to_rewards.to(rewards.dtype), to_logprobs.to(logprobs.dtype), None


def _pacs_tangent(
    ctx: Any, saved: list, rewards_tangent: Tensor | None, logprobs_tangent: Tensor | None, *_: Any
) -> Any:
    saved = saved[:3]
    return _sum(
        None if rewards_tangent is None else _pacs_backward(rewards_tangent, *saved)[0],
        None if logprobs_tangent is None else _pacs_backward(logprobs_tangent, *saved)[1],
    )


def _pacs_second_gradient(ctx: Any, to_rewards: Tensor | None, to_logprobs: Tensor | None) -> tuple:
    gradient, rewards, logprobs, offsets = ctx.saved_tensors
    mean = _row_mean(rewards, offsets)
    in_gradient: Tensor | None = None
    in_values: list[Tensor | None] = [None, None]
    for k, (sign, cotangent, values) in enumerate([(1, to_rewards, rewards), (-1, to_logprobs, logprobs)]):
        if cotangent is not None:
            of_gradient, of_values = _z_second_gradient(cotangent, gradient, values, mean)
            in_gradient = _sum(in_gradient, sign * of_gradient)
            in_values[k] = (sign * of_values).to(values.dtype)
    return None if in_gradient is None else in_gradient.to(gradient.dtype), *in_values, None


def _pacs_second_tangent(
    ctx: Any,
    saved: list,
    of_gradient: Tensor | None,
    of_rewards: Tensor | None,
    of_logprobs: Tensor | None,
    *_: None,
) -> tuple:
    """F of `_z_second_gradient` stays the same if its cotangent and the tangent of the values exchange roles."""
    gradient, rewards, logprobs, offsets = saved
    mean = _row_mean(rewards, offsets)
    dtype = torch.promote_types(rewards.dtype, torch.float32)
    first = (None, None) if of_gradient is None else _pacs_backward(of_gradient, rewards, logprobs, offsets)
    tangents = []
    for sign, part, tangent, values in ((1, first[0], of_rewards, rewards), (-1, first[1], of_logprobs, logprobs)):
        second = None if tangent is None else sign * _z_second_gradient(tangent, gradient, values, mean)[1]
        total = _sum(part, second)
        tangents.append((torch.zeros_like(values) if total is None else total).to(dtype))
    return tuple(tangents)


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


_register_derivatives("pacs", _save_inputs, _pacs_gradient, _pacs_tangent)
_register_derivatives("pacs_backward", _save_inputs, _pacs_second_gradient, _pacs_second_tangent)


# conflict_scores: pacs and mean_abs_pacs have derivatives. The rank statistics are piecewise constant.


def _save_conflicts(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.mark_non_differentiable(*output[2:])
    _save(ctx, *inputs, output[0])


def _conflict_gradient(ctx: Any, of_pacs: Tensor | None, of_mean: Tensor | None, *_: None) -> tuple:
    rewards, logprobs, offsets, scores = ctx.saved_tensors
    if of_mean is not None:
        lengths = rewards.shape[-1] if offsets is None else offsets.diff().clamp(min=1)
        share = of_mean / lengths
        share = (
            share[..., None] if offsets is None else share.repeat_interleave(offsets.diff(), output_size=len(rewards))
        )
        of_pacs = _sum(of_pacs, share * scores.sign())
    if of_pacs is None:
        return None, None, None
    to_rewards, to_logprobs = _pacs_backward(of_pacs, rewards, logprobs, offsets)
    return to_rewards.to(rewards.dtype), to_logprobs.to(logprobs.dtype), None


def _conflict_tangent(ctx: Any, saved: list, *tangents: Any) -> tuple:
    _, _, offsets, scores = saved
    of_pacs = _pacs_tangent(ctx, saved, *tangents)
    if of_pacs is None:
        return None, None, None, None, None
    change = scores.sign() * of_pacs
    if offsets is None:
        of_mean = change.mean(-1) if change.shape[-1] else change.sum(-1)
    else:
        of_mean = torch.segment_reduce(change, "mean", offsets=offsets, initial=0)
    return of_pacs, of_mean, None, None, None


_register_derivatives("conflict_scores", _save_conflicts, _conflict_gradient, _conflict_tangent)


# Log-probabilities of tokens. The first derivative is an op; there is no second.


def _save_tokens(ctx: Any, inputs: tuple, output: Any) -> None:
    logits, labels, mask, ctx.temperature, ctx.computed_entropy = inputs
    _, _, entropy, normalizer = output
    ctx.mark_non_differentiable(normalizer, *(() if ctx.computed_entropy else (entropy,)))
    _save(ctx, logits, labels, mask, entropy, normalizer)


def _token_gradient(
    ctx: Any, of_sums: Tensor | None, of_logprobs: Tensor | None, of_entropy: Tensor | None, *_: None
) -> tuple:
    logits, labels, mask, entropy, normalizer = ctx.saved_tensors
    gradient = _sum(None if of_sums is None else of_sums[:, None].expand(labels.shape), of_logprobs)
    if gradient is None:
        if of_entropy is None:
            return (None,) * 5
        gradient = torch.zeros_like(of_entropy)
    backward = torch.ops.shfcas.token_statistics_backward.default
    saved = None if of_entropy is None else entropy
    return (
        backward(gradient, of_entropy, logits, labels, mask, saved, normalizer, ctx.temperature),
        None,
        None,
        None,
        None,
    )


def _token_tangent(ctx: Any, saved: list, tangent: Tensor | None, *_: None) -> tuple:
    """Each result depends on one row of logits: the tangent is the product of the row's gradient with its tangent."""
    if tangent is None:
        return None, None, None, None
    logits, labels, mask, entropy, normalizer = saved
    one, none = normalizer[..., 0].new_ones(labels.shape), normalizer[..., 0].new_zeros(labels.shape)
    backward = torch.ops.shfcas.token_statistics_backward.default

    def product(*gradients: Tensor | None) -> Tensor:
        spread = None if gradients[1] is None else entropy
        by_row = backward(*gradients, logits, labels, mask, spread, normalizer, ctx.temperature)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return (by_row * tangent).sum(-1, dtype=wide)

    of_logprobs = product(one, None)
    return of_logprobs.sum(-1), of_logprobs, product(none, one) if ctx.computed_entropy else None, None


def _no_second_derivative(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError("token_logprobs: expected one differentiation, got two; it is differentiable once")


_register_derivatives("token_statistics", _save_tokens, _token_gradient, _token_tangent)
_register_derivatives(
    "token_statistics_backward", lambda ctx, inputs, output: None, _no_second_derivative, _no_second_derivative
)


def _save_linear(ctx: Any, inputs: tuple, output: Any) -> None:
    hidden, weight, labels, bias, ctx.temperature, ctx.computed_entropy = inputs
    _, entropy, normalizer = output
    ctx.mark_non_differentiable(normalizer, *(() if ctx.computed_entropy else (entropy,)))
    _save(ctx, hidden, weight, labels, bias, entropy, normalizer)


def _linear_gradient(ctx: Any, of_logprobs: Tensor | None, of_entropy: Tensor | None, *_: None) -> tuple:
    hidden, weight, labels, bias, entropy, normalizer = ctx.saved_tensors
    if of_logprobs is None:
        if of_entropy is None:
            return (None,) * 6
        of_logprobs = torch.zeros_like(of_entropy)
    needed = (*ctx.needs_input_grad[1:], False)  # without the keyset; bias may be left out
    wanted = [needed[0], needed[1], needed[3]]
    gradients = torch.ops.shfcas.linear_token_statistics_backward.default(
        of_logprobs,
        of_entropy,
        hidden,
        weight,
        labels,
        bias,
        None if of_entropy is None else entropy,
        normalizer,
        ctx.temperature,
        wanted,
    )
    to_hidden, to_weight, to_bias = (part if want else None for part, want in zip(gradients, wanted, strict=True))
    return to_hidden, to_weight, None, to_bias, None, None


def _no_forward_mode(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "linear_token_logprobs: expected reverse mode, got forward mode; use token_logprobs of hidden @ weight.T"
    )


_register_derivatives("linear_token_statistics", _save_linear, _linear_gradient, _no_forward_mode)
_register_derivatives(
    "linear_token_statistics_backward", lambda ctx, inputs, output: None, _no_second_derivative, _no_second_derivative
)


# Rank statistics are piecewise constant. Their results need no gradient, and their tangents are 0, as those of
# torch.sign.

for _op in (
    "kendall_counts",
    "kendall_tau",
    "kendall_distance",
    "kendall_tau_matrix",
    "kendall_distance_matrix",
    "kendall_statistics",
    "kendall_test",
):
    _library.impl(_op, fallthrough_kernel, "Autograd")
