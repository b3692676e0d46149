import math

import pytest
import torch
from rows import FLOATING, assert_all_equal, make_rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import shfcas
from shfcas.ops import _token_logprobs, reference

inf, nan = math.inf, math.nan
# Around the blocks of the kernel and the registers in them.
VOCABULARIES = (1, 2, 3, 8, 31, 33, 1023, 1025, 2048, 3001)


def make_tokens(batch, length, vocabulary, dtype, seed):
    """Logits, labels and a mask; labels that do not count are -100."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 0.7
    labels = torch.randint(0, vocabulary, (batch, length), generator=generator).where(mask, -100)
    return make_rows((batch, length, vocabulary), dtype, seed) * 4, labels, mask


def make_linear(vocabulary, dtype, seed, rows=(2, 3), width=5):
    """Hidden states, weight, labels and bias."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = make_rows((*rows, width), dtype, seed), make_rows((vocabulary, width), dtype, seed + 1)
    return (
        hidden,
        weight,
        torch.randint(vocabulary, rows, generator=generator),
        make_rows((vocabulary,), dtype, seed + 2),
    )


def with_torch(logits, labels, mask=None, *, temperature=1.0):
    """The same in torch, differentiable, by way of tensors as large as the logits."""
    log_softmax = (logits / temperature).log_softmax(-1)
    logprobs = log_softmax.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    entropy = -(log_softmax.exp() * log_softmax.masked_fill(log_softmax == -inf, 0)).sum(-1)
    return tuple(part if mask is None else part.where(mask, 0) for part in (logprobs, entropy))


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest result of any operation inside, also within the ops written in Python."""

    def __init__(self):
        super().__init__()
        self.bytes, self.operations = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        sizes = [part.untyped_storage().nbytes() for part in tree_leaves(result) if torch.is_tensor(part)]
        self.bytes = max([self.bytes, *sizes])
        return result


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("dtype", FLOATING)
def test_equals_reference(dtype, temperature):
    tolerance = 1e-12 if dtype == torch.float64 else 4e-6
    for vocabulary in VOCABULARIES:
        logits, labels, mask = make_tokens(2, 3, vocabulary, dtype, vocabulary)
        result = shfcas.token_logprobs(logits, labels, mask, temperature=temperature, entropy=True)
        expected = reference.token_logprobs(logits, labels, mask, temperature=temperature)
        torch.testing.assert_close(tuple(result), tuple(expected), rtol=tolerance, atol=tolerance)
        alone = shfcas.token_logprobs(logits, labels, mask, temperature=temperature)
        assert torch.equal(alone, result.logprobs)


def test_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 0.0], [math.log(3.0), 0.0, -inf]]], dtype=torch.float64)
    result = shfcas.token_logprobs(logits, torch.tensor([[2, 0]]), entropy=True)
    assert result.logprobs[0].tolist() == pytest.approx([-math.log(3), math.log(3 / 4)], rel=1e-15)
    expected = [math.log(3), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)]
    assert result.entropy[0].tolist() == pytest.approx(expected, rel=1e-15)
    assert shfcas.token_logprobs(logits, torch.tensor([[2, 2]]))[0, 1] == -inf


def test_sequence_logprobs_are_their_sum():
    logits, labels, mask = make_tokens(4, 60, 1030, torch.float64, 1)
    sums = shfcas.sequence_logprobs(logits, labels, mask)
    in_order = [0.0] * 4
    for b, row in enumerate(shfcas.token_logprobs(logits, labels, mask).tolist()):
        for value in row:
            in_order[b] += value
    assert sums.tolist() == in_order


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", FLOATING)
def test_gradient(dtype, masked):
    for vocabulary in (1, 2, 33, 1025, 2500):
        for temperature in (1.0, 0.7):
            logits, labels, mask = make_tokens(2, 3, vocabulary, dtype, 2)
            if not masked:
                labels, mask = labels.clamp(min=0), None
            weights = make_rows((2, 2, 3), torch.float64, 3)
            exact = logits.to(torch.float64, copy=True).requires_grad_()
            expected = with_torch(exact, labels, mask, temperature=temperature)
            sum((w * e).sum() for w, e in zip(weights, expected, strict=True)).backward()
            logits.requires_grad_()
            result = shfcas.token_logprobs(logits, labels, mask, temperature=temperature, entropy=True)
            sum((w * e).sum() for w, e in zip(weights, result, strict=True)).backward()
            assert logits.grad.dtype == dtype
            tolerance = 1e-12 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(
                logits.grad, exact.grad.to(dtype), rtol=max(tolerance, 4 * torch.finfo(dtype).eps), atol=tolerance
            )


@pytest.mark.parametrize("part", [0, 1])
def test_gradcheck(part):
    logits, labels, mask = make_tokens(2, 2, 6, torch.float64, 4)
    logits.requires_grad_()

    def one(logits):
        return shfcas.token_logprobs(logits, labels, mask, temperature=0.7, entropy=True)[part]

    assert torch.autograd.gradcheck(one, (logits,), check_forward_ad=True)


def test_minus_infinity_has_no_gradient():
    logits = torch.randn(1, 2, 2500)
    logits[0, :, :1500] = -inf
    labels = torch.tensor([[2000, 2400]])
    exact, leaf = logits.double().requires_grad_(), logits.clone().requires_grad_()
    result, expected = shfcas.token_logprobs(leaf, labels, entropy=True), with_torch(exact, labels)
    torch.testing.assert_close(tuple(part.double() for part in result), expected, rtol=1e-5, atol=1e-6)
    (result.logprobs + result.entropy).sum().backward()
    assert not leaf.grad[0, :, :1500].any()
    assert leaf.grad[0, :, 1500:].isfinite().all()


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("place", [0, 1200, 2999])
def test_what_is_no_number_spoils_its_own_position(bad, place):
    logits, labels = torch.randn(2, 3, 3000), torch.full((2, 3), 5)
    clean = shfcas.token_logprobs(logits, labels, entropy=True)
    logits[1, 1, place] = bad
    leaf = logits.requires_grad_()
    result = shfcas.token_logprobs(leaf, labels, entropy=True)
    expected = torch.zeros(2, 3, dtype=torch.bool)
    expected[1, 1] = True
    for part, before in zip(result, clean, strict=True):
        assert torch.equal(part.isnan(), expected)
        assert torch.equal(part[~expected], before[~expected])
    (result.logprobs + result.entropy).nansum().backward()
    assert leaf.grad[~expected].isfinite().all()


def test_there_is_no_second_gradient():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    result = shfcas.token_logprobs(logits, torch.tensor([[0, 1]]))
    (gradient,) = torch.autograd.grad(result.sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        gradient.sum().backward()


def test_memory_does_not_grow_with_the_logits():
    logits = torch.randn(2, 8, 30_000).bfloat16().requires_grad_()
    labels = torch.zeros(2, 8, dtype=torch.int64)
    with LargestTensor() as forward:
        result = shfcas.token_logprobs(logits, labels, entropy=True)
    assert 0 < forward.bytes < logits.nbytes / 1000
    with LargestTensor() as backward:
        (result.logprobs + result.entropy).sum().backward()
    assert backward.bytes == logits.nbytes  # the gradient itself


# From hidden states.


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 2 positions and 8 tokens."""
    monkeypatch.setattr(_token_logprobs, "_CHUNK", 16)
    monkeypatch.setattr(_token_logprobs, "_CHUNK_ROWS", 2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", FLOATING)
def test_linear_equals_logits(small_chunks, dtype, temperature):
    tolerance = 1e-12 if dtype == torch.float64 else 4e-6
    for vocabulary in (1, 7, 8, 9, 16, 37):
        hidden, weight, labels, bias = make_linear(vocabulary, dtype, vocabulary)
        for this_bias in (None, bias):
            logits = torch.nn.functional.linear(hidden, weight, this_bias)
            expected = with_torch(logits.double(), labels, temperature=temperature)
            options = {"temperature": temperature, "entropy": True}
            result = shfcas.linear_token_logprobs(hidden, weight, labels, this_bias, **options)
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert [part.dtype for part in result] == [wide, wide]
            torch.testing.assert_close(
                [part.double() for part in result], list(expected), rtol=tolerance, atol=tolerance
            )
            alone = shfcas.linear_token_logprobs(hidden, weight, labels, this_bias, temperature=temperature)
            assert torch.equal(alone, result.logprobs)


@pytest.mark.parametrize("dtype", FLOATING)
def test_linear_gradient(small_chunks, dtype):
    hidden, weight, labels, bias = make_linear(37, dtype, 5)
    weights = make_rows((2, 2, 3), torch.float64, 6)
    gradients = []
    for exact in (True, False):
        leaves = [
            part.to(torch.float64 if exact else dtype, copy=True).requires_grad_() for part in (hidden, weight, bias)
        ]
        if exact:
            parts = with_torch(torch.nn.functional.linear(*leaves), labels, temperature=0.7)
        else:
            parts = shfcas.linear_token_logprobs(leaves[0], leaves[1], labels, leaves[2], temperature=0.7, entropy=True)
        sum((w * part).sum() for w, part in zip(weights, parts, strict=True)).backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert [part.dtype for part in gradients[1]] == [dtype] * 3
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for expected, result in zip(*gradients, strict=True):
        torch.testing.assert_close(
            result.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
        )


@pytest.mark.parametrize("part", [0, 1])
def test_linear_gradcheck(small_chunks, part):
    hidden, weight, labels, bias = make_linear(19, torch.float64, 7, rows=(3,), width=2)

    def one(hidden, weight, bias):
        return shfcas.linear_token_logprobs(hidden, weight, labels, bias, temperature=0.7, entropy=True)[part]

    assert torch.autograd.gradcheck(one, [leaf.requires_grad_() for leaf in (hidden, weight, bias)])


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_linear_gradient_of_one(small_chunks, wanted):
    hidden, weight, labels, bias = make_linear(19, torch.float64, 8)
    leaves = [part.clone().requires_grad_() for part in (hidden, weight, bias)]
    shfcas.linear_token_logprobs(leaves[0], leaves[1], labels, leaves[2]).sum().backward()
    some = [part.clone().requires_grad_(want) for part, want in zip((hidden, weight, bias), wanted, strict=True)]
    shfcas.linear_token_logprobs(some[0], some[1], labels, some[2]).sum().backward()
    for leaf, one, want in zip(leaves, some, wanted, strict=True):
        assert one.grad is None if not want else torch.equal(one.grad, leaf.grad)


def test_linear_special_values(small_chunks):
    """A token that the bias excludes, a chunk of such tokens, and a hidden state that is no number."""
    hidden, weight, labels, bias = make_linear(24, torch.float32, 9)
    labels[0, 0], labels[0, 1] = 1, 20
    bias[1] = -inf
    bias[16:] = -inf
    hidden[1, 2] = nan
    leaf = hidden.clone().requires_grad_()
    result = shfcas.linear_token_logprobs(leaf, weight, labels.clamp(max=20), bias, entropy=True)
    expected = with_torch(torch.nn.functional.linear(hidden, weight, bias).double(), labels.clamp(max=20))
    torch.testing.assert_close([part.double() for part in result], list(expected), rtol=1e-5, atol=1e-5, equal_nan=True)
    result.entropy[0].sum().backward()
    assert leaf.grad[0].isfinite().all()


@pytest.mark.parametrize("rows", [(), (0,), (2, 0), (1,)])
def test_linear_shapes(rows):
    hidden, weight, labels, _ = make_linear(9, torch.float32, 10, rows)
    result = shfcas.linear_token_logprobs(hidden.requires_grad_(), weight, labels, entropy=True)
    assert [part.shape for part in result] == [rows, rows]
    result.logprobs.sum().backward()
    assert hidden.grad.shape == hidden.shape


def test_linear_is_refused_in_forward_mode():
    hidden, weight, labels, _ = make_linear(9, torch.float32, 11)
    with pytest.raises(NotImplementedError, match="linear_token_logprobs: expected reverse mode"):
        torch.func.jvp(lambda h: shfcas.linear_token_logprobs(h, weight, labels), (hidden,), (hidden,))


def test_linear_under_autocast():
    hidden, weight, labels, bias = make_linear(9, torch.float32, 12)
    expected = shfcas.linear_token_logprobs(hidden, weight, labels, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert_all_equal([shfcas.linear_token_logprobs(hidden, weight, labels, bias)], [expected])


def test_linear_memory_is_that_of_a_few_chunks():
    """No tensor inside is larger than a chunk of logits or the gradients themselves, forward and backward."""
    positions, vocabulary = 1100, 60_000
    generator = torch.Generator().manual_seed(13)
    hidden = torch.randn(positions, 2, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, 2, generator=generator, requires_grad=True)
    labels = torch.randint(vocabulary, (positions,), generator=generator)
    of_logits = 4 * positions * vocabulary
    with LargestTensor() as forward:
        result = torch.ops.shfcas.linear_token_statistics(hidden.detach(), weight.detach(), labels, None, 1.0, True)
    with LargestTensor() as backward:
        torch.ops.shfcas.linear_token_statistics_backward(
            result[0], result[0], hidden.detach(), weight.detach(), labels, None, *result[1:], 1.0, [True, True, False]
        )
    for inside in (forward, backward):
        assert inside.operations > 0
        assert inside.bytes <= 4 * _token_logprobs._CHUNK < of_logits / 30
