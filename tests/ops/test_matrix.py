import math

import pytest
import torch
from rows import FLOATING, INTEGER, assert_all_equal, make_rows

import shfcas
from shfcas.ops import reference

nan = math.nan


def assert_close(result, expected):
    """Tau of (x, y) and of (y, x) may differ by a rounding; the matrix has one of them in both places."""
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.parametrize("distinct", [None, 3, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_equals_reference(dtype, distinct):
    for m, n in ((0, 0), (0, 1), (0, 5), (1, 7), (2, 0), (3, 1), (5, 2), (9, 8), (4, 63), (3, 64), (4, 65), (3, 129)):
        x = make_rows((m, n), dtype, 0, distinct)
        for variant in ("a", "b", "c"):
            result, expected = (module.kendall_tau_matrix(x, variant=variant) for module in (shfcas, reference))
            assert_close(result, expected)
        assert_all_equal([shfcas.kendall_distance_matrix(x)], [reference.kendall_distance_matrix(x)])


@pytest.mark.parametrize("m", [2, 31, 32, 33, 65])
@pytest.mark.parametrize("distinct", [None, 4])
def test_every_pair_is_that_of_the_row_function(m, distinct):
    x = make_rows((m, 100), torch.float32, m, distinct)
    one, other = x.repeat_interleave(m, 0), x.repeat(m, 1)
    for variant in ("a", "b", "c"):
        expected = shfcas.kendall_tau(one, other, variant=variant).reshape(m, m)
        assert_close(shfcas.kendall_tau_matrix(x, variant=variant), expected)
    expected = shfcas.kendall_distance(one, other).reshape(m, m)
    assert_all_equal([shfcas.kendall_distance_matrix(x)], [expected])


@pytest.mark.parametrize("dtype", [*FLOATING, *INTEGER])
def test_every_dtype_and_strides(dtype):
    x = make_rows((20, 14), dtype, 1, 9).t()[:, ::2]
    assert not x.is_contiguous()
    assert_close(shfcas.kendall_tau_matrix(x), reference.kendall_tau_matrix(x))


def test_values_beyond_the_digits_of_a_double():
    x = 2**62 + torch.stack([torch.randperm(70) for _ in range(3)])
    assert_all_equal([shfcas.kendall_distance_matrix(x)], [reference.kendall_distance_matrix(x)])


def test_zeros_infinities_and_denormals():
    x = torch.tensor([[-0.0, 0.0, 1.0, math.inf], [-1e-45, 0.0, 1e-45, -math.inf], [0.0, 1.0, 2.0, 3.0]])
    assert_close(shfcas.kendall_tau_matrix(x), reference.kendall_tau_matrix(x))


@pytest.mark.parametrize("n", [5, 70])
def test_nan_spoils_its_own_row_and_column(n):
    x = make_rows((6, n), torch.float64, 2)
    clean_tau, clean_distance = shfcas.kendall_tau_matrix(x), shfcas.kendall_distance_matrix(x)
    x[2, n - 1] = nan
    others = torch.arange(6) != 2
    for result, clean in (
        (shfcas.kendall_tau_matrix(x), clean_tau),
        (shfcas.kendall_distance_matrix(x), clean_distance),
    ):
        assert result[2].isnan().all() and result[:, 2].isnan().all()
        assert torch.equal(result[others][:, others], clean[others][:, others])


def test_symmetric():
    x = make_rows((20, 50), torch.float32, 4, 7)
    for matrix in (shfcas.kendall_tau_matrix(x), shfcas.kendall_distance_matrix(x)):
        assert torch.equal(matrix, matrix.t())


def test_diagonal():
    x = torch.tensor([[1.0, 2.0, 2.0, 3.0], [7.0, 7.0, 7.0, 7.0]])
    assert shfcas.kendall_tau_matrix(x)[0, 0] == 1
    assert shfcas.kendall_tau_matrix(x)[1].isnan().all()
    assert shfcas.kendall_tau_matrix(x, variant="a").diagonal().tolist() == pytest.approx([5 / 6, 0])
    assert shfcas.kendall_distance_matrix(x).diagonal().tolist() == [0, 0]


def test_results_do_not_depend_on_threads():
    x = make_rows((37, 90), torch.float32, 3, 20)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(shfcas.kendall_tau_matrix(x))
    finally:
        torch.set_num_threads(threads)
    assert_all_equal(results[:1] * 2, results[1:])
