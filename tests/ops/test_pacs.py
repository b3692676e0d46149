import math
from itertools import pairwise

import pytest
import torch
from rows import SIZES, assert_all_equal, make_jagged, make_rows

import shfcas
from shfcas.ops import reference

inf, nan = math.inf, math.nan


def log_probabilities(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Large and close together, as sums over many tokens are."""
    return (make_rows(shape, torch.float64, seed) * 2 - 300).to(dtype)


def test_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    logprobs = torch.tensor([-1.0, -2.0, -1.0, -2.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.0, -2.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(shfcas.pacs(rewards, logprobs), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_reference(dtype, tolerance):
    for n in SIZES:
        rewards, logprobs = make_rows((6, n), dtype, 0), log_probabilities((6, n), dtype, 1)
        result = shfcas.conflict_scores(rewards, logprobs)
        expected = reference.conflict_scores(rewards, logprobs)
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert_all_equal([shfcas.pacs(rewards, logprobs)], [result.pacs])


@pytest.mark.parametrize("n", [2, 8, 64, 5000])
def test_float32_is_close_to_float64(n):
    rewards, logprobs = make_rows((20, n), torch.float32, 2), log_probabilities((20, n), torch.float32, 3)
    single, double = shfcas.pacs(rewards, logprobs), shfcas.pacs(rewards.double(), logprobs.double())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    rewards, logprobs = make_rows((5, 8), dtype, 4), make_rows((5, 8), dtype, 5)
    assert_all_equal([shfcas.pacs(rewards, logprobs)], [shfcas.pacs(rewards.float(), logprobs.float())])


def test_degenerate_rows():
    spread = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rewards = torch.stack([spread, torch.ones(4), spread, torch.ones(4), spread * 1e-7])
    logprobs = torch.stack([spread, spread, -torch.ones(4), -torch.ones(4), spread])
    scores = shfcas.conflict_scores(rewards, logprobs)
    assert scores.degenerate.tolist() == [False, True, True, True, True]
    z = (spread - 2.5) / spread.std(correction=0)
    torch.testing.assert_close(scores.pacs[1], -z)
    torch.testing.assert_close(scores.pacs[2], z)
    assert not scores.pacs[3].any()
    torch.testing.assert_close(scores.pacs[4], -z)
    assert scores.kendall_distance.tolist() == [0, 0, 0, 0, 0]
    assert scores.kendall_tau_b.isnan().tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("n", [0, 1])
def test_rows_too_short(n):
    scores = shfcas.conflict_scores(torch.ones(2, n), torch.ones(2, n))
    assert scores.degenerate.all()
    assert not scores.pacs.any()
    assert scores.mean_abs_pacs.tolist() == [0, 0]
    assert scores.kendall_tau_b.isnan().all()
    assert scores.kendall_distance.isnan().all()


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("n", [1, 8, 70])
def test_what_is_not_finite_spoils_its_own_row(n, bad):
    rewards, logprobs = make_rows((9, n), torch.float32, 6), make_rows((9, n), torch.float32, 7)
    clean = shfcas.conflict_scores(rewards, logprobs)
    rewards[4, 0] = bad
    scores = shfcas.conflict_scores(rewards, logprobs)
    assert scores.pacs[4].isnan().all()
    assert scores.mean_abs_pacs[4].isnan()
    assert scores.degenerate[4] == (n < 2)
    others = torch.arange(9) != 4
    assert_all_equal([part[others] for part in scores], [part[others] for part in clean])
    if n > 1:
        assert scores.kendall_tau_b[4].isnan() == math.isnan(bad)


def test_jagged_equals_dense():
    lengths = [*SIZES, 8, 8, 0, 300, *SIZES[::-1], *[16] * 40]
    rewards, logprobs, offsets = make_jagged(lengths, torch.float32, 8)
    jagged = shfcas.conflict_scores(rewards, logprobs, offsets=offsets)
    for row, (a, b) in enumerate(pairwise(offsets.tolist())):
        dense = shfcas.conflict_scores(rewards[a:b], logprobs[a:b])
        assert_all_equal([jagged.pacs[a:b], *(part[row] for part in jagged[1:])], dense)
    assert_all_equal([shfcas.pacs(rewards, logprobs, offsets=offsets)], [jagged.pacs])


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (2, 0, 5)])
def test_empty_batches(shape):
    x = torch.empty(shape)
    assert shfcas.pacs(x, x).shape == shape
    assert_all_equal(shfcas.conflict_scores(x, x), reference.conflict_scores(x, x))


def test_results_do_not_depend_on_threads():
    rewards, logprobs, offsets = make_jagged([8, 70, 3, 64, 65] * 2000, torch.float32, 9)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(shfcas.conflict_scores(rewards, logprobs, offsets=offsets))
    finally:
        torch.set_num_threads(threads)
    assert_all_equal(results[0], results[1])


@pytest.mark.parametrize("n", [2, 5, 8, 70])
def test_gradient_equals_finite_differences(n):
    rewards = make_rows((2, n), torch.float64, 10).requires_grad_()
    logprobs = make_rows((2, n), torch.float64, 11).requires_grad_()
    assert torch.autograd.gradcheck(shfcas.pacs, (rewards, logprobs))


def test_gradient_of_jagged_and_strided_rows():
    rewards, logprobs, offsets = make_jagged([3, 0, 8, 1, 5], torch.float64, 12)
    inputs = (rewards.requires_grad_(), logprobs.requires_grad_())
    assert torch.autograd.gradcheck(lambda r, p: shfcas.pacs(r, p, offsets=offsets), inputs)
    square = make_rows((6, 6), torch.float64, 13).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: shfcas.pacs(s.t(), s), (square,))


def test_gradient_of_one_side_and_of_half_precision():
    rewards = make_rows((3, 8), torch.bfloat16, 14).requires_grad_()
    logprobs = make_rows((3, 8), torch.bfloat16, 15)
    shfcas.pacs(rewards, logprobs).square().sum().backward()
    assert rewards.grad.dtype == torch.bfloat16
    assert logprobs.grad is None


def test_gradient_of_a_degenerate_row_is_zero():
    rewards, logprobs = torch.ones(4, requires_grad=True), torch.arange(4.0).requires_grad_()
    shfcas.pacs(rewards, logprobs)[0].backward()
    assert not rewards.grad.any()
    assert logprobs.grad.any()


@pytest.mark.parametrize("n", [2, 5, 70])
def test_second_gradient_equals_finite_differences(n):
    rewards = make_rows((2, n), torch.float64, 16).requires_grad_()
    logprobs = make_rows((2, n), torch.float64, 17).requires_grad_()
    # A row of two has z = +-1 whatever its values: all derivatives are 0, and finite differences are noise.
    assert torch.autograd.gradgradcheck(shfcas.pacs, (rewards, logprobs), fast_mode=n > 10, atol=1e-5)


def test_second_gradient_of_jagged_and_strided_rows():
    rewards, logprobs, offsets = make_jagged([3, 0, 8, 1, 5], torch.float64, 18)
    inputs = (rewards.requires_grad_(), logprobs.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda r, p: shfcas.pacs(r, p, offsets=offsets), inputs)
    square = make_rows((6, 6), torch.float64, 19).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s: shfcas.pacs(s.t(), s), (square,))


def test_second_gradient_of_degenerate_rows_is_that_of_the_other_side():
    """Rewards are constant, so that finite differences of theirs would leave the degenerate range."""
    rewards = torch.ones(3, 5, dtype=torch.float64, requires_grad=True)
    logprobs = make_rows((3, 5), torch.float64, 20).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda p: shfcas.pacs(rewards.detach(), p), (logprobs,))
    (gradient,) = torch.autograd.grad(shfcas.pacs(rewards, logprobs).square().sum(), rewards, create_graph=True)
    second = torch.autograd.grad(gradient.square().sum() + gradient.sum(), (rewards, logprobs))
    assert not any(part.any() for part in second)


def test_second_gradient_of_what_is_not_finite_spoils_its_own_row():
    rewards, logprobs = make_rows((3, 5), torch.float64, 21), make_rows((3, 5), torch.float64, 22).requires_grad_()
    rewards[1, 0] = nan
    rewards.requires_grad_()
    (gradient,) = torch.autograd.grad(shfcas.pacs(rewards, logprobs).pow(3).sum(), rewards, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), rewards)
    assert second.isnan().any(-1).tolist() == [False, True, False]


def test_third_gradient():
    rewards, logprobs = make_rows((2, 4), torch.float64, 23), make_rows((2, 4), torch.float64, 24)

    def first(r, p):
        return torch.autograd.grad(shfcas.pacs(r, p).pow(3).sum(), r, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(first, (rewards.requires_grad_(), logprobs.requires_grad_()))


def test_rank_statistics_have_no_gradient():
    x = torch.randn(3, 8, requires_grad=True)
    assert not shfcas.kendall_tau(x, x).requires_grad
    assert not shfcas.kendall_distance(x, x).requires_grad
    scores = shfcas.conflict_scores(x, x)
    assert [part.requires_grad for part in scores] == [True, True, False, False, False]


@pytest.mark.parametrize("jagged", [False, True])
def test_gradient_of_conflict_scores(jagged):
    offsets = torch.tensor([0, 3, 3, 8, 10]) if jagged else None
    shape = (10,) if jagged else (2, 5)
    inputs = tuple(make_rows(shape, torch.float64, seed).requires_grad_() for seed in (26, 27))

    def differentiable(rewards, logprobs):
        return shfcas.conflict_scores(rewards, logprobs, offsets=offsets)[:2]

    assert torch.autograd.gradcheck(differentiable, inputs, check_forward_ad=True)
    loss, expected = differentiable(*inputs)[0].square().sum(), shfcas.pacs(*inputs, offsets=offsets).square().sum()
    assert_all_equal(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))
