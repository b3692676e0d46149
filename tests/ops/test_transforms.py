"""torch.func, forward-mode derivatives and vmap over all ops: right, or refused clearly."""

import warnings

import pytest
import torch
from rows import make_jagged, make_rows
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import shfcas

OFFSETS = torch.tensor([0, 3, 3, 8, 10])
RANKS = {
    "kendall_counts": shfcas.kendall_counts,
    "kendall_tau": shfcas.kendall_tau,
    "kendall_distance": shfcas.kendall_distance,
    "kendall_test": shfcas.kendall_test,
}


def z(values):
    return (values - values.mean(-1, keepdim=True)) / values.std(-1, correction=0, keepdim=True)


def loss_of(function):
    """A scalar whose second derivative needs the first of the function, and its second."""
    return lambda rewards, logprobs: function(rewards, logprobs).pow(3).sum()


OURS = loss_of(shfcas.pacs)
THEIRS = loss_of(lambda rewards, logprobs: z(rewards) - z(logprobs))
TRANSFORMS = {
    "grad": lambda f, x, y, v: grad(f, argnums=(0, 1))(x, y),
    "jvp": lambda f, x, y, v: jvp(f, (x, y), (v, 2 * v)),
    "jacrev": lambda f, x, y, v: jacrev(f)(x, y),
    "jacfwd": lambda f, x, y, v: jacfwd(f, argnums=1)(x, y),
    "hessian": lambda f, x, y, v: hessian(f, argnums=(0, 1))(x, y),
    "reverse over reverse": lambda f, x, y, v: grad(lambda x: (grad(f)(x, y) * v).sum())(x),
    "reverse over forward": lambda f, x, y, v: grad(lambda x: jvp(f, (x, y), (v, v))[1])(x),
    "forward over forward": lambda f, x, y, v: jvp(lambda x: jvp(f, (x, y), (v, v))[1], (x,), (v,)),
    "forward over reverse": lambda f, x, y, v: jvp(grad(f, argnums=1), (x, y), (v, -v)),
    "third order": lambda f, x, y, v: jvp(lambda x: (hessian(f)(x, y) ** 2).sum(), (x,), (v,)),
    "per sample": lambda f, x, y, v: vmap(grad(f))(x, y),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pacs(name):
    x, y, v = (make_rows((2, 5), torch.float64, seed) for seed in (1, 2, 3))
    result, expected = (TRANSFORMS[name](f, x, y, v) for f in (OURS, THEIRS))
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_pacs_of_jagged_rows():
    x, y, offsets = make_jagged([3, 0, 5, 2], torch.float64, 4)
    v = make_rows(x.shape, torch.float64, 6)

    def ours(x):
        return shfcas.pacs(x, y, offsets=offsets).pow(3).sum()

    def theirs(x):
        rows = zip(x.split([3, 5, 2]), y.split([3, 5, 2]), strict=True)
        return sum((z(a) - z(b)).pow(3).sum() for a, b in rows)

    for transform in (lambda f: jvp(f, (x,), (v,)), lambda f: hessian(f)(x)):
        torch.testing.assert_close(transform(ours), transform(theirs), rtol=1e-9, atol=1e-9)


def test_forward_mode_gradcheck():
    inputs = tuple(make_rows((2, 4), torch.float64, seed).requires_grad_() for seed in (7, 8))
    assert torch.autograd.gradcheck(shfcas.pacs, inputs, check_forward_ad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(shfcas.pacs, inputs, check_fwd_over_rev=True)


def test_dtypes_of_tangents():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, y = make_rows((2, 5), dtype, 9), make_rows((2, 5), dtype, 10)
        value, tangent = jvp(shfcas.pacs, (x, y), (torch.ones_like(x), y))
        assert value.dtype == tangent.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        gradient = grad(OURS)(x, y)
        assert gradient.dtype == dtype


def test_only_one_argument_has_a_tangent():
    x, y, v = (make_rows((2, 5), torch.float64, seed) for seed in (11, 12, 13))
    ours = jvp(lambda y: grad(OURS)(x, y), (y,), (v,))[1]
    torch.testing.assert_close(ours, jvp(lambda y: grad(THEIRS)(x, y), (y,), (v,))[1], rtol=1e-10, atol=1e-10)
    gradients = jvp(lambda x: vjp(shfcas.pacs, x, y)[1](v), (x,), (v,))[1]
    expected = jvp(lambda x: vjp(lambda x, y: z(x) - z(y), x, y)[1](v), (x,), (v,))[1]
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", RANKS)
def test_rank_statistics_are_constant(name):
    """Piecewise: gradients and tangents are 0."""
    x, y = make_rows((3, 5), torch.float64, 14), make_rows((3, 5), torch.float64, 15)

    def first(x):
        result = RANKS[name](x, y)
        return (result if torch.is_tensor(result) else result[0]).double()

    assert not grad(lambda x: first(x).sum())(x).any()
    value, tangent = jvp(first, (x,), (y,))
    assert torch.equal(value, first(x)) and not tangent.any()


def test_conflict_scores():
    x, y, v = (make_rows((2, 5), torch.float64, seed) for seed in (16, 17, 18))

    def theirs(x, y):
        scores = z(x) - z(y)
        return scores, scores.abs().mean(-1)

    def ours(x, y):
        return tuple(shfcas.conflict_scores(x, y)[:2])

    for transform in (lambda f: jvp(f, (x, y), (v, -v)), lambda f: jacrev(f)(x, y), lambda f: jacfwd(f, 1)(x, y)):
        torch.testing.assert_close(transform(ours), transform(theirs), rtol=1e-10, atol=1e-10)
    tangents = jvp(lambda x: tuple(part.double() for part in shfcas.conflict_scores(x, y)[2:]), (x,), (v,))[1]
    assert not any(part.any() for part in tangents)


def tokens(logits, labels):
    log_softmax = logits.log_softmax(-1)
    return log_softmax.gather(-1, labels[..., None]).squeeze(-1), -(log_softmax.exp() * log_softmax).sum(-1)


def test_token_logprobs():
    logits, v = make_rows((2, 3, 7), torch.float64, 19), make_rows((2, 3, 7), torch.float64, 20)
    labels = torch.tensor([[0, 6, 2], [1, 1, 5]])

    def ours(logits):
        return tuple(shfcas.token_logprobs(logits, labels, entropy=True))

    def theirs(logits):
        return tokens(logits, labels)

    for transform in (lambda f: jvp(f, (logits,), (v,)), lambda f: jacrev(f)(logits), lambda f: jacfwd(f)(logits)):
        torch.testing.assert_close(transform(ours), transform(theirs), rtol=1e-10, atol=1e-10)
    value, tangent = jvp(lambda logits: shfcas.sequence_logprobs(logits, labels), (logits,), (v,))
    expected = jvp(lambda logits: theirs(logits)[0].sum(-1), (logits,), (v,))
    torch.testing.assert_close((value, tangent), expected, rtol=1e-10, atol=1e-10)
    for second in (lambda: hessian(lambda x: ours(x)[0].sum())(logits), lambda: jacfwd(jacfwd(ours))(logits)):
        with pytest.raises(NotImplementedError, match="token_logprobs: expected one differentiation, got two"):
            second()


def test_linear_token_logprobs():
    hidden, weight = make_rows((3, 4), torch.float64, 21), make_rows((7, 4), torch.float64, 22)
    labels = torch.tensor([0, 6, 2])

    def ours(hidden, weight):
        return tuple(shfcas.linear_token_logprobs(hidden, weight, labels, entropy=True))

    def theirs(hidden, weight):
        return tokens(hidden @ weight.t(), labels)

    result, expected = (jacrev(f, argnums=(0, 1))(hidden, weight) for f in (ours, theirs))
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


VMAPPED = {
    **RANKS,
    "pacs": shfcas.pacs,
    "conflict_scores": shfcas.conflict_scores,
    "kendall_tau_matrix": lambda x, y: shfcas.kendall_tau_matrix(x),
    "kendall_distance_matrix": lambda x, y: shfcas.kendall_distance_matrix(y),
    "jagged": lambda x, y: shfcas.conflict_scores(x.flatten(), y.flatten(), offsets=OFFSETS),
    "sequence_logprobs": lambda x, y: shfcas.sequence_logprobs(x[None], (y[:, 0] > 0).long()[None]),
    "token_logprobs": lambda x, y: shfcas.token_logprobs(x[None], (y[:, 0] > 0).long()[None], entropy=True),
    "token_logprobs alone": lambda x, y: shfcas.token_logprobs(x[None], (y[:, 0] > 0).long()[None]),
    "linear_token_logprobs": lambda x, y: shfcas.linear_token_logprobs(x, y, (y[:, 0] > 0).long(), entropy=True),
}


@pytest.mark.parametrize("name", VMAPPED)
@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (0, None), (None, 2)])
def test_vmap(name, in_dims):
    function = VMAPPED[name]
    samples = [make_rows((3, 2, 5), torch.float64, 23), make_rows((3, 2, 5), torch.float64, 24)]
    inputs = [part[0] if dim is None else part.movedim(0, dim) for part, dim in zip(samples, in_dims, strict=True)]
    each = [[part[0] if dim is None else part[k] for part, dim in zip(samples, in_dims, strict=True)] for k in range(3)]

    def parts(*arguments):
        result = function(*arguments)
        return (result,) if torch.is_tensor(result) else tuple(result)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, about ops without a rule
        result = vmap(parts, in_dims=in_dims)(*inputs)
    expected = [torch.stack(column) for column in zip(*(parts(*one) for one in each), strict=True)]
    torch.testing.assert_close(list(result), expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_result_still_has_its_gradient_in_ordinary_mode():
    x, y = make_rows((2, 5), torch.float64, 25).requires_grad_(), make_rows((2, 5), torch.float64, 26)
    with torch.no_grad():
        assert not shfcas.pacs(x, y).requires_grad
    assert shfcas.pacs(x, y).requires_grad
    assert not shfcas.kendall_tau(x, y).requires_grad
