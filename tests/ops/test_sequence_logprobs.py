import math
import subprocess
import sys

import pytest
import torch
from rows import FLOATING, assert_all_equal, make_rows

import shfcas
from shfcas.ops import reference

inf, nan = math.inf, math.nan
# Around the blocks of the kernel and the registers in them.
VOCABULARIES = (1, 2, 3, 7, 8, 9, 31, 33, 1023, 1024, 1025, 1031, 2048, 3001)


def make_sequences(batch, length, vocabulary, dtype, seed):
    """Logits, labels and a mask; labels that do not count are -100."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 0.7
    labels = torch.randint(0, vocabulary, (batch, length), generator=generator).where(mask, -100)
    return make_rows((batch, length, vocabulary), dtype, seed) * 4, labels, mask


def with_torch(logits, labels, mask=None):
    """The same in torch, differentiable, by way of a tensor as large as the logits."""
    logprobs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (logprobs if mask is None else logprobs.where(mask, 0)).sum(-1)


def gradient_of(logits, labels, mask, gradient):
    """The gradient of the logits, read through their strides."""
    leaf = logits.detach().requires_grad_()
    shfcas.sequence_logprobs(leaf, labels, mask).backward(gradient.to(shfcas.sequence_logprobs(logits, labels, mask)))
    return leaf.grad.contiguous()


@pytest.mark.parametrize("dtype", FLOATING)
def test_equals_reference(dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for vocabulary in VOCABULARIES:
        logits, labels, mask = make_sequences(2, 3, vocabulary, dtype, vocabulary)
        result = shfcas.sequence_logprobs(logits, labels, mask)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            result, reference.sequence_logprobs(logits, labels, mask), rtol=tolerance, atol=tolerance
        )


def test_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 0.0], [math.log(3.0), 0.0, -inf]]], dtype=torch.float64)
    expected = -math.log(3) + math.log(3 / 4)
    assert shfcas.sequence_logprobs(logits, torch.tensor([[2, 0]])).item() == pytest.approx(expected, rel=1e-15)
    assert shfcas.sequence_logprobs(logits, torch.tensor([[2, 2]])).item() == -inf


def test_exp_is_as_exact_as_float32_allows():
    """Through the gradient: of two logits 0 and -x, it is exp(-x) / (1 + exp(-x)) for the second."""
    x = torch.cat([torch.linspace(0, 86.9, 40_000), torch.arange(126) * math.log(2) / 2])
    logits = torch.stack([torch.zeros_like(x), -x], -1).unsqueeze(1)
    labels = torch.zeros(len(x), 1, dtype=torch.int64)
    result = -gradient_of(logits, labels, None, torch.ones(len(x)))[:, 0, 1]
    expected = logits[:, 0].double().softmax(-1)[:, 1]
    assert ((result - expected) / expected).abs().max() < 2.5 * 2**-23


def test_a_large_vocabulary_in_float32():
    logits, labels, mask = make_sequences(1, 4, 151_936, torch.float32, 1)
    result, expected = shfcas.sequence_logprobs(logits, labels, mask), with_torch(logits.double(), labels, mask)
    torch.testing.assert_close(result.double(), expected, rtol=2e-7, atol=0)
    shifted = shfcas.sequence_logprobs(logits + 1000, labels, mask)  # rounds the logits to 6e-5
    torch.testing.assert_close(shifted, result, rtol=0, atol=3e-4)


def test_the_largest_logit_may_stand_anywhere():
    for place in (0, 1, 1023, 1024, 2047, 2999):
        logits = torch.full((1, 1, 3000), -30.0)
        logits[0, 0, place] = 60.0
        assert shfcas.sequence_logprobs(logits, torch.tensor([[place]])).item() == pytest.approx(0, abs=1e-6)
        assert shfcas.sequence_logprobs(logits, torch.tensor([[5]])).item() == pytest.approx(-90 if place != 5 else 0)


def test_minus_infinity():
    logits = torch.randn(1, 2, 2500)
    logits[0, :, :1500] = -inf
    labels = torch.tensor([[2000, 2400]])
    torch.testing.assert_close(shfcas.sequence_logprobs(logits, labels), with_torch(logits, labels))
    assert shfcas.sequence_logprobs(logits, torch.tensor([[2000, 7]])).item() == -inf
    logits.requires_grad_()
    shfcas.sequence_logprobs(logits, labels).sum().backward()
    assert not logits.grad[0, :, :1500].any()
    assert logits.grad[0, :, 1500:].all()


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("place", [0, 1200, 2999])
def test_what_is_no_number_spoils_its_own_sequence(bad, place):
    for rest in (torch.randn(3, 2, 3000), torch.full((3, 2, 3000), -inf)):
        rest[:, :, 5] = 0
        labels = torch.full((3, 2), 5)
        clean = shfcas.sequence_logprobs(rest, labels)
        rest[1, 0, place] = bad
        result = shfcas.sequence_logprobs(rest, labels)
        assert result[1].isnan()
        assert torch.equal(result[[0, 2]], clean[[0, 2]])
        mask = torch.tensor([[True, True], [False, True], [True, True]])
        assert not shfcas.sequence_logprobs(rest, labels, mask).isnan().any()


def test_a_row_of_minus_infinity_has_no_distribution():
    assert shfcas.sequence_logprobs(torch.full((1, 1, 9), -inf), torch.tensor([[3]])).isnan()


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (0, 0, 0), (2, 0, 0)])
def test_empty(shape):
    logits, labels = torch.zeros(shape, requires_grad=True), torch.zeros(shape[:2], dtype=torch.int64)
    result = shfcas.sequence_logprobs(logits, labels)
    assert_all_equal([result.detach()], [torch.zeros(shape[0])])
    result.sum().backward()
    assert logits.grad.shape == shape


def test_nothing_counts():
    logits = torch.full((2, 3, 4), nan)
    labels, mask = torch.full((2, 3), -100), torch.zeros(2, 3, dtype=torch.bool)
    assert shfcas.sequence_logprobs(logits, labels, mask).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", FLOATING)
def test_strides(dtype):
    wide, labels, mask = make_sequences(4, 6, 1300, dtype, 2)
    expected = shfcas.sequence_logprobs(wide, labels, mask)
    time_first = wide.transpose(0, 1).contiguous().transpose(0, 1)
    vocabulary_first = wide.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    spread = torch.empty(8, 6, 2600, dtype=dtype)[::2, :, ::2].copy_(wide)
    for logits in (time_first, vocabulary_first, spread):
        assert not logits.is_contiguous()
        assert torch.equal(shfcas.sequence_logprobs(logits, labels, mask), expected)
        gradient = torch.arange(4.0)
        result = gradient_of(logits, labels, mask, gradient)
        assert torch.equal(result, gradient_of(wide, labels, mask, gradient))
    shifted = wide[:, :-1], labels[:, 1:], mask[:, 1:]  # as a language model's logits meet their labels
    torch.testing.assert_close(
        shfcas.sequence_logprobs(*shifted), reference.sequence_logprobs(*shifted), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("masked", [True, False])
def test_gradient_equals_finite_differences(masked):
    logits, labels, mask = make_sequences(2, 3, 5, torch.float64, 3)
    labels, mask = (labels, mask) if masked else (labels.clamp(min=0), None)
    assert torch.autograd.gradcheck(lambda z: shfcas.sequence_logprobs(z, labels, mask), (logits.requires_grad_(),))


@pytest.mark.parametrize("dtype", FLOATING)
def test_gradient_equals_that_of_torch(dtype):
    for vocabulary in VOCABULARIES:
        logits, labels, mask = make_sequences(3, 2, vocabulary, dtype, 4)
        weights = torch.tensor([1.0, -2.5, 0.0], dtype=torch.float64)
        exact = logits.double().requires_grad_()
        with_torch(exact, labels, mask).mul(weights).sum().backward()
        logits.requires_grad_()
        shfcas.sequence_logprobs(logits, labels, mask).mul(weights).sum().backward()
        assert logits.grad.dtype == dtype
        torch.testing.assert_close(logits.grad, exact.grad.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-7)
        assert not logits.grad[~mask].any()


def test_there_is_no_second_gradient():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    result = shfcas.sequence_logprobs(logits, torch.tensor([[0, 1]]))
    (gradient,) = torch.autograd.grad(result.sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        gradient.sum().backward()


def test_results_do_not_depend_on_threads():
    logits, labels, mask = make_sequences(5, 40, 2000, torch.float32, 5)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            gradient = gradient_of(logits, labels, mask, torch.arange(5.0))
            results.append([shfcas.sequence_logprobs(logits, labels, mask), gradient])
    finally:
        torch.set_num_threads(threads)
    assert_all_equal(results[0], results[1])
    assert_all_equal(results[0], results[2])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in bytes elsewhere")
def test_memory_does_not_grow_with_the_logits():
    """Also with strides that come from a language model's logits; peak memory is that of a process."""
    code = """
import resource, torch, shfcas
logits = torch.randn(8, 33, 49152)[:, :-1]
labels = torch.zeros(8, 32, dtype=torch.int64)
shfcas.sequence_logprobs(logits[:, :1], labels[:, :1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shfcas.sequence_logprobs(logits, labels)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / logits.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.02
