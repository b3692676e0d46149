"""kendall_test beside scipy: the cases that scipy tests kendalltau with, and random rows."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from rows import FLOATING, INTEGER, SIZES, make_jagged, make_rows
from torch.utils._python_dispatch import TorchDispatchMode

import shfcas
from shfcas.ops import _pvalues, reference

nan = math.nan
ALTERNATIVES = ("two-sided", "less", "greater")

# x, y, tau-b, two-sided p-value. The p-values were computed by R's cor.test, as scipy's tests quote it.
KNOWN = [
    ([5, 2, 1, 3, 6, 4, 7, 8], [5, 2, 6, 3, 1, 8, 7, 4], 0.0, 1.0),
    ([0, 5, 2, 1, 3, 6, 4, 7, 8], [5, 2, 0, 6, 3, 1, 8, 7, 4], 0.0, 1.0),
    ([5, 2, 1, 3, 6, 4, 7], [5, 2, 6, 3, 1, 7, 4], -0.14285714286, 0.77261904762),
    ([2, 1, 3, 6, 4, 7, 8], [2, 6, 3, 1, 8, 7, 4], 0.047619047619, 1.0),
    ([9, 2, 5, 6], [4, 7, 9, 11], 0.0, 1.0),
    (range(10), range(10), 1.0, 5.511463844797e-07),
    (range(10), [0, 2, 1, *range(3, 10)], 0.9555555555555556, 5.511463844797e-06),
    (range(10), [0, 2, 1, 3, 4, 6, 5, 7, 8, 9], 0.9111111111111111, 2.976190476190e-05),
    (range(10), range(9, -1, -1), -1.0, 5.511463844797e-07),
    (range(10), [9, 7, 8, *range(6, -1, -1)], -0.9555555555555556, 5.511463844797e-06),
    (range(10), [9, 7, 8, 6, 5, 3, 4, 2, 1, 0], -0.9111111111111111, 2.976190476190e-05),
    ([5.05, 6.75, 3.21, 2.66], [1.65, 26.5, -5.93, 7.96], 1 / 3, 0.75),
    ([12, 2, 1, 12, 2], [1, 4, 7, 1, 0], -0.47140452079103173, 0.28274545993277478),
    ([5.05, 6.75, 3.21, 2.66], [1.65, 2.64, 2.64, 6.95], -0.5477226, 0.2785987),
    (
        [0, 0, 0, 0, 20, 20, 0, 60, 0, 20, 10, 10, 0, 40, 0, 20, 0, 0, 0, 0],
        [0, 80, 80, 80, 10, 33, 60, 0, 67, 27, 25, 80, 80, 80, 80, 80, 80, 0, 10, 45],
        -0.1585188,
        0.4128009,
    ),
]


def rows_of(x, y):
    return torch.tensor(list(x), dtype=torch.float64), torch.tensor(list(y), dtype=torch.float64)


def from_scipy(x, y, **options):
    result = scipy.stats.kendalltau(x.numpy(), y.numpy(), **options)
    return float(result.statistic), float(result.pvalue)


def numbers(test):
    return test.tau.item(), test.pvalue.item()


@pytest.mark.parametrize(("x", "y", "tau", "pvalue"), KNOWN, ids=range(len(KNOWN)))
def test_known_values(x, y, tau, pvalue):
    x, y = rows_of(x, y)
    assert numbers(shfcas.kendall_test(x, y)) == pytest.approx((tau, pvalue), rel=1e-6, abs=1e-12)
    assert numbers(shfcas.kendall_test(x, y)) == pytest.approx(from_scipy(x, y), rel=1e-12, abs=1e-15)


def test_asymptotic_on_request():
    x, y = rows_of([5.05, 6.75, 3.21, 2.66], [1.65, 26.5, -5.93, 7.96])
    assert shfcas.kendall_test(x, y, method="asymptotic").pvalue.item() == pytest.approx(0.4969059, rel=1e-6)
    x = torch.arange(9)
    assert shfcas.kendall_test(x, x).pvalue.item() == pytest.approx(5.5114638e-6, rel=1e-6)
    assert shfcas.kendall_test(x, x, method="asymptotic").pvalue.item() == pytest.approx(0.00017455009626808976)


def test_tau_c_of_a_contingency_table():
    """Kendall's own example, where the variants differ and the p-value does not."""
    x, y = rows_of([1, 2, 2, 4, 4, 6, 6, 8, 9, 9], [1, 2, 4, 4, 4, 4, 8, 8, 8, 10])
    b, c = (shfcas.kendall_test(x, y, variant=variant) for variant in "bc")
    assert (b.tau.item(), c.tau.item()) == pytest.approx((0.85895569, 0.825), rel=1e-7)
    assert torch.equal(b.pvalue, c.pvalue)
    x = torch.tensor([1, 1, 2])
    assert shfcas.kendall_test(x, x).tau == 1
    assert shfcas.kendall_test(x, x, variant="c").tau.item() == pytest.approx(8 / 9)


# Every branch of the exact p-value: x, y, tau, then p for less, two-sided, greater.
EXACT = [
    ([1], [2], nan, (nan, nan, nan)),
    ([1, 2], [3, 4], 1.0, (1, 1, 0.5)),
    ([1, 2, 3], [1, 2, 3], 1.0, (1, 0.3333333333333, 0.1666666666667)),
    ([1, 2, 3, 4], [1, 2, 4, 3], 0.6666666666667, (0.9583333333333, 0.3333333333333, 0.1666666666667)),
    ([1, 2, 3, 4, 5], [1, 5, 4, 2, 3], 0.0, (0.5916666666667, 1, 0.5916666666667)),
    (range(1, 9), [8, 6, 1, 3, 2, 5, 4, 7], 0.0, (0.5475694444444, 1, 0.5475694444444)),
    (
        [44.4, 45.9, 41.9, 53.3, 44.7, 44.1, 50.7, 45.2, 60.1],
        [2.6, 3.1, 2.5, 5.0, 3.6, 4.0, 5.2, 2.8, 3.8],
        0.4444444444444,
        (0.9624118165785, 0.1194389329806, 0.0597194664903),
    ),
    (*np.random.RandomState(0).rand(2, 100), -0.0468686868687, (0.246236925303, 0.4924738506059, 0.755634083327)),
    (*np.random.RandomState(0).rand(2, 170), 0.1115906717717, (0.9847475308925, 0.03071385306533, 0.01535692653267)),
]


@pytest.mark.parametrize(("x", "y", "tau", "pvalues"), EXACT, ids=range(len(EXACT)))
def test_exact_values(x, y, tau, pvalues):
    x, y = rows_of(x, y)
    for alternative, pvalue, opposite in zip(("less", "two-sided", "greater"), pvalues, pvalues[::-1], strict=True):
        result = shfcas.kendall_test(x, y, method="exact", alternative=alternative)
        assert numbers(result) == pytest.approx((tau, pvalue), rel=1e-10, abs=1e-15, nan_ok=True)
        result = shfcas.kendall_test(x, -y, method="exact", alternative=alternative)
        assert numbers(result) == pytest.approx((-tau, opposite), rel=1e-10, abs=1e-15, nan_ok=True)


def test_exact_pvalue_is_a_fraction_of_all_orders():
    for n in (2, 3, 4, 5, 6):
        x = torch.arange(n).expand(math.factorial(n), n)
        y = torch.tensor(list(itertools.permutations(range(n))))
        for alternative, sign in (("greater", 1), ("less", -1)):
            tau, pvalue = shfcas.kendall_test(x, y, method="exact", alternative=alternative)
            at_least = (sign * tau >= sign * tau[:, None] - 1e-9).double().mean(-1)
            torch.testing.assert_close(pvalue, at_least, rtol=1e-14, atol=0)


# Values of the two-sided test by symbolic arithmetic, as scipy's tests quote them: n, concordant pairs, p.
@pytest.mark.parametrize(
    ("n", "concordant", "pvalue"),
    [
        (100, 2393, 0.62822615287956040664),
        (101, 2436, 0.60439525773513602669),
        (170, 0, 2.755801935583541e-307),
        (171, 1, 2.755801935583541e-307),
        (200, 9797, 0.74753983745929675209),
        (201, 9656, 0.40959218958120363618),
    ],
)
def test_exact_pvalue_of_long_rows(n, concordant, pvalue):
    order = with_concordant(n, concordant)
    assert shfcas.kendall_counts(torch.arange(n), order).concordant == concordant
    result = shfcas.kendall_test(torch.arange(n), order, method="exact")
    assert result.pvalue.item() == pytest.approx(pvalue, rel=1e-11)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_long_rows_are_close_to_normal(alternative):
    x, y = torch.from_numpy(np.random.RandomState(0).rand(2, 400))
    exact, normal = (shfcas.kendall_test(x, y, method=m, alternative=alternative) for m in ("exact", "asymptotic"))
    torch.testing.assert_close(exact, normal, rtol=1e-3, atol=0)


def with_concordant(n, concordant):
    """A permutation with so many concordant pairs: each element in turn is placed after as many as it can."""
    order = []
    for size in range(n):
        place = min(size, concordant)  # the new element is the largest: it is concordant with all before it
        concordant -= place
        order.insert(place, size)
    return torch.tensor(order)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("method", ["auto", "exact", "asymptotic"])
def test_equals_scipy(method, alternative):
    for n, distinct in itertools.product((3, 5, 10, 33, 34, 60), (None, 3)):
        if method == "exact" and distinct is not None:
            continue
        x, y = make_rows((n,), torch.float64, n, distinct), make_rows((n,), torch.float64, n + 1, distinct)
        swapped = x.argsort().argsort().double()
        swapped[[0, 1]] = swapped[[1, 0]]
        for other in (y, x, -x, swapped, -swapped):
            if distinct is not None and other is swapped:
                continue
            result = shfcas.kendall_test(x, other, method=method, alternative=alternative)
            expected = from_scipy(x, other, method=method, alternative=alternative)
            assert numbers(result) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("distinct", [None, 2, 5])
def test_equals_reference(distinct, alternative):
    for n in (*SIZES[:12], 32, 33, 34, 65):
        x, y = make_rows((4, n), torch.float32, 2, distinct), make_rows((4, n), torch.float32, 3, distinct)
        y[-1] = x[-1]
        for method in ("auto", "exact") if n <= 33 else ("auto",):
            result = shfcas.kendall_test(x, y, method=method, alternative=alternative)
            expected = reference.kendall_test(x, y, method=method, alternative=alternative)
            torch.testing.assert_close(result, expected, rtol=1e-10, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [*FLOATING, *INTEGER])
def test_every_dtype(dtype):
    x, y = make_rows((12, 9), dtype, 4), make_rows((12, 9), dtype, 5)
    torch.testing.assert_close(shfcas.kendall_test(x, y), reference.kendall_test(x, y), rtol=1e-12, atol=0)


@pytest.mark.parametrize("variant", ["a", "b", "c"])
@pytest.mark.parametrize("distinct", [None, 1, 3])
def test_tau_is_that_of_kendall_tau(distinct, variant):
    for n in SIZES:
        x, y = make_rows((5, n), torch.float32, 6, distinct), make_rows((5, n), torch.float32, 7, distinct)
        if n > 2:
            x[2, 1] = nan
        result = shfcas.kendall_test(x, y, variant=variant)
        expected = shfcas.kendall_tau(x, y, variant=variant)
        torch.testing.assert_close(result.tau, expected, rtol=0, atol=0, equal_nan=True)
        assert result.pvalue.isnan()[result.tau.isnan()].all()


def test_a_large_row():
    generator = np.random.RandomState(7546)
    x = np.array([generator.normal(loc=1, scale=1, size=500) for _ in range(2)])
    x = torch.from_numpy(np.linalg.cholesky([[1.0, 0.3], [0.3, 1.0]]) @ x)
    assert numbers(shfcas.kendall_test(x[0], x[1])) == pytest.approx((0.19291382765531062, 1.1337095377742629e-10))


def test_many_ties_do_not_overflow():
    x, y = make_rows((200_000,), torch.int64, 8, 7), make_rows((200_000,), torch.int64, 9, 7)
    assert numbers(shfcas.kendall_test(x, y)) == pytest.approx(from_scipy(x, y), rel=1e-9)


def test_constant_and_short_rows_and_nan():
    two = torch.tensor([2.0, 2.0, 2.0])
    for x, y in ((two, two), (torch.tensor([2.0, 0.0, 2.0]), two), (two, torch.tensor([2.0, 0.0, 2.0]))):
        for variant in "abc":
            for method in ("auto", "exact", "asymptotic"):
                assert shfcas.kendall_test(x, y, variant=variant, method=method).pvalue.isnan()
    for x in (torch.empty(0), torch.ones(1), torch.tensor([1.0, nan, 3.0])):
        assert all(part.isnan() for part in shfcas.kendall_test(x, x))


def test_two_values_by_the_normal_distribution():
    """Where scipy divides by zero."""
    x = torch.tensor([1.0, 2.0])
    pvalue = shfcas.kendall_test(x, x, method="asymptotic").pvalue.item()
    assert pvalue == pytest.approx(math.erfc(math.sqrt(0.5)))


def test_a_row_with_ties_has_no_exact_pvalue_and_leaves_the_others():
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 3.0], [3.0, 2.0, 1.0]])
    result = shfcas.kendall_test(x, torch.arange(3.0).expand(3, 3), method="exact")
    assert result.pvalue.isnan().tolist() == [False, True, False]
    assert not result.tau.isnan().any()


@pytest.mark.parametrize("method", ["auto", "exact", "asymptotic"])
def test_jagged_equals_dense(method):
    lengths = [0, 1, 2, 3, 8, 33, 34, 34, 70, 2, 5]
    x, y, offsets = make_jagged(lengths, torch.float32, 10)
    y[offsets[7] : offsets[8]] = x[offsets[7] : offsets[8]]
    result = shfcas.kendall_test(x, y, method=method, offsets=offsets)
    rows = [shfcas.kendall_test(x[a:b], y[a:b], method=method) for a, b in itertools.pairwise(offsets.tolist())]
    expected = [torch.stack(parts) for parts in zip(*rows, strict=True)]
    torch.testing.assert_close(list(result), expected, rtol=1e-14, atol=0, equal_nan=True)


class HostReads(TorchDispatchMode):
    """Collects the ops that wait for a device to read what it computed, whatever device they run on."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.equal,
            torch.ops.aten.nonzero,
        ):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_only_exact_pvalues_of_long_rows_are_computed_on_the_host():
    x, y, offsets = make_jagged([3, 0, 40], torch.float32, 12)
    for method, reads in (("auto", False), ("asymptotic", False), ("exact", True)):
        for arguments in ((x[:3], y[:3], None), (x[:40].view(1, 40), y[:40].view(1, 40), None), (x, y, offsets)):
            with HostReads() as host:
                _pvalues.kendall_test(*arguments[:2], "b", "two-sided", method, arguments[2])
            assert bool(host.found) == reads, (method, host.found)


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (2, 0, 5), (2, 3, 4)])
def test_shapes(shape):
    x = torch.empty(shape)
    assert all(part.shape == shape[:-1] for part in shfcas.kendall_test(x, x))
