import math
from collections import Counter
from itertools import pairwise

import pytest
import scipy.stats
import torch
from rows import FLOATING, INTEGER, SIZES, assert_all_equal, make_jagged, make_rows

import shfcas
from shfcas.ops import reference

inf, nan = math.inf, math.nan

# x, y, concordant, discordant, tied_x, tied_y, tied_both
HAND_TABLE = [
    ([], [], 0, 0, 0, 0, 0),
    ([5.0], [7.0], 0, 0, 0, 0, 0),
    ([1.0, 2.0], [3.0, 4.0], 1, 0, 0, 0, 0),
    ([1.0, 2.0], [4.0, 3.0], 0, 1, 0, 0, 0),
    ([1.0, 1.0], [4.0, 3.0], 0, 0, 1, 0, 0),
    ([1.0, 1.0], [3.0, 3.0], 0, 0, 1, 1, 1),
    ([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], 0, 6, 0, 0, 0),
    ([1.0, 2.0, 3.0, 3.0], [1.0, 3.0, 2.0, 2.0], 3, 2, 1, 1, 1),
    ([-0.0, 0.0, 1.0], [1.0, 2.0, 3.0], 2, 0, 1, 0, 0),
    ([-inf, 0.0, inf], [1.0, 2.0, 3.0], 3, 0, 0, 0, 0),
    ([inf, inf, -inf], [1.0, 2.0, 3.0], 0, 2, 1, 0, 0),
    ([-1e-45, 0.0, 1e-45], [3.0, 2.0, 1.0], 0, 3, 0, 0, 0),
    ([1.0, nan, 2.0], [1.0, 2.0, 3.0], -1, -1, -1, -1, -1),
    ([1.0, 2.0, 3.0], [nan, nan, nan], -1, -1, -1, -1, -1),
    ([nan], [1.0], -1, -1, -1, -1, -1),
]


@pytest.mark.parametrize(("x", "y", "counts"), [(row[0], row[1], row[2:]) for row in HAND_TABLE])
def test_counts_by_hand(x, y, counts):
    for dtype in (torch.float64, torch.float32):
        result = shfcas.kendall_counts(torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype))
        assert tuple(int(count) for count in result) == counts


@pytest.mark.parametrize("distinct", [None, 3, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_statistics_of_ties(dtype, distinct):
    for n in SIZES:
        x, y = make_rows((3, n), dtype, 18, distinct), make_rows((3, n), dtype, 19, distinct)
        *counts, classes, triples_x, triples_y = torch.ops.shfcas.kendall_statistics(x, y)
        assert_all_equal(counts, shfcas.kendall_counts(x, y))
        groups_x, groups_y = ([Counter(row).values() for row in side.tolist()] for side in (x, y))
        assert classes.tolist() == [min(len(a), len(b)) for a, b in zip(groups_x, groups_y, strict=True)]
        for triples, groups in ((triples_x, groups_x), (triples_y, groups_y)):
            assert triples.dtype == torch.float64
            assert triples.tolist() == [sum(t * (t - 1) * (t - 2) for t in sizes) for sizes in groups]


def test_statistics_of_a_row_with_nan():
    *counts, classes, triples_x, triples_y = torch.ops.shfcas.kendall_statistics(torch.tensor([1, nan]), torch.ones(2))
    assert [int(count) for count in counts] == [-1] * 5
    assert classes == 0
    assert triples_x.isnan() and triples_y.isnan()


@pytest.mark.parametrize("distinct", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int16])
def test_counts_equal_brute_force(dtype, distinct):
    for n in SIZES:
        x, y = make_rows((3, n), dtype, 0, distinct), make_rows((3, n), dtype, 1, distinct)
        assert_all_equal(shfcas.kendall_counts(x, y), reference.kendall_counts(x, y))


@pytest.mark.parametrize("dtype", [*FLOATING, *INTEGER])
def test_every_dtype(dtype):
    x, y = make_rows((21, 9), dtype, 2, 5), make_rows((21, 9), dtype, 3, 5)
    assert_all_equal(shfcas.kendall_counts(x, y), reference.kendall_counts(x, y))
    assert_all_equal([shfcas.kendall_tau(x, y)], [reference.kendall_tau(x, y)])


@pytest.mark.parametrize("n", [2, 40, 100])
def test_int64_beyond_the_digits_of_a_double(n):
    x = 2**62 + torch.randperm(n)
    y = -(2**62) - torch.randperm(n)
    assert_all_equal(shfcas.kendall_counts(x, y), reference.kendall_counts(x, y))


@pytest.mark.parametrize("variant", ["a", "b", "c"])
@pytest.mark.parametrize("distinct", [None, 2, 5])
def test_tau_equals_reference(distinct, variant):
    for n in SIZES:
        x, y = make_rows((4, n), torch.float64, 4, distinct), make_rows((4, n), torch.float64, 5, distinct)
        result, expected = (module.kendall_tau(x, y, variant=variant) for module in (shfcas, reference))
        torch.testing.assert_close(result, expected, rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.parametrize("variant", ["b", "c"])
@pytest.mark.parametrize("distinct", [None, 1, 2, 6])
def test_tau_equals_scipy(distinct, variant):
    for n in (2, 8, 33, 64, 65, 1000):
        x, y = make_rows((n,), torch.float64, 6, distinct), make_rows((n,), torch.float64, 7, distinct)
        expected = scipy.stats.kendalltau(x.numpy(), y.numpy(), variant=variant).statistic
        assert shfcas.kendall_tau(x, y, variant=variant).item() == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_constant_row():
    x, y = torch.ones(5), torch.arange(5.0)
    assert shfcas.kendall_tau(x, y, variant="a") == 0
    assert shfcas.kendall_tau(x, y, variant="b").isnan()
    assert shfcas.kendall_tau(x, y, variant="c").isnan()
    assert shfcas.kendall_distance(x, y) == 0


@pytest.mark.parametrize("normalized", [True, False])
def test_distance_equals_reference(normalized):
    for n in SIZES:
        x, y = make_rows((4, n), torch.float32, 8, 9), make_rows((4, n), torch.float32, 9, 9)
        result = shfcas.kendall_distance(x, y, normalized=normalized)
        assert_all_equal([result], [reference.kendall_distance(x, y, normalized=normalized)])


def test_distance_without_ties_is_half_of_one_minus_tau():
    x, y = torch.randperm(50).double(), torch.randperm(50).double()
    distance, tau = shfcas.kendall_distance(x, y), shfcas.kendall_tau(x, y)
    assert distance.item() == pytest.approx((1 - tau.item()) / 2)


@pytest.mark.parametrize("distinct", [None, 30])
def test_large_row_equals_scipy(distinct):
    n = 20_000
    x, y = make_rows((n,), torch.float32, 10, distinct), make_rows((n,), torch.float32, 11, distinct)
    y = y + x.round()
    counts = shfcas.kendall_counts(x, y)
    pairs = n * (n - 1) // 2
    assert counts.concordant + counts.discordant + counts.tied_x + counts.tied_y - counts.tied_both == pairs
    expected = scipy.stats.kendalltau(x.numpy(), y.numpy()).statistic
    assert shfcas.kendall_tau(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_counts_beyond_32_bits():
    n = 100_000
    x = torch.arange(n)
    assert shfcas.kendall_counts(x, -x).discordant == n * (n - 1) // 2
    assert shfcas.kendall_counts(x, torch.zeros_like(x)).tied_y == n * (n - 1) // 2


@pytest.mark.parametrize("n", [5, 64, 90])
def test_nan_spoils_its_own_row_only(n):
    x, y = make_rows((40, n), torch.float32, 12), make_rows((40, n), torch.float32, 13)
    clean = shfcas.kendall_counts(x, y)
    x[3, 0] = y[17, n - 1] = nan
    spoiled = shfcas.kendall_counts(x, y)
    for before, after in zip(clean, spoiled, strict=True):
        assert after[3] == after[17] == -1
        others = torch.ones(40, dtype=torch.bool)
        others[[3, 17]] = False
        assert torch.equal(before[others], after[others])
    assert shfcas.kendall_tau(x, y)[3].isnan()
    assert shfcas.kendall_distance(x, y)[17].isnan()
    assert shfcas.kendall_distance(x, y, normalized=False)[17].isnan()


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (0, 0), (2, 0, 5)])
def test_empty_batches(shape):
    x = torch.empty(shape)
    assert_all_equal(shfcas.kendall_counts(x, x), reference.kendall_counts(x, x))
    assert shfcas.kendall_tau(x, x).shape == shape[:-1]


def test_leading_dimensions_and_strides():
    x, y = make_rows((2, 7, 3, 5), torch.float32, 14), make_rows((2, 7, 3, 5), torch.float32, 15)
    for view in (lambda t: t.transpose(1, 3), lambda t: t[:, ::2], lambda t: t.flip(-1)[..., 1:]):
        assert not view(x).is_contiguous()
        assert_all_equal(shfcas.kendall_counts(view(x), view(y)), reference.kendall_counts(view(x), view(y)))
    assert_all_equal(
        shfcas.kendall_counts(x[0, 0].expand(4, 3, 5), y[:, :, :, :][0, :4]),
        reference.kendall_counts(x[0, 0].expand(4, 3, 5), y[0, :4]),
    )


@pytest.mark.parametrize("variant", ["a", "b", "c"])
@pytest.mark.parametrize("distinct", [None, 4])
def test_jagged_equals_dense(distinct, variant):
    lengths = [*SIZES, 8, 8, 0, 300, 8, 64, 65, 1, *SIZES[::-1], *[8] * 40]
    x, y, offsets = make_jagged(lengths, torch.float32, 16, distinct)
    slices = [slice(a, b) for a, b in pairwise(offsets.tolist())]
    counts = [shfcas.kendall_counts(x[s], y[s]) for s in slices]
    assert_all_equal(shfcas.kendall_counts(x, y, offsets=offsets), [torch.stack(c) for c in zip(*counts, strict=True)])
    taus = torch.stack([shfcas.kendall_tau(x[s], y[s], variant=variant) for s in slices])
    assert_all_equal([shfcas.kendall_tau(x, y, variant=variant, offsets=offsets)], [taus])
    distances = torch.stack([shfcas.kendall_distance(x[s], y[s]) for s in slices])
    assert_all_equal([shfcas.kendall_distance(x, y, offsets=offsets)], [distances])


@pytest.mark.parametrize("distinct", [None, 40])
def test_rows_of_very_different_length(distinct):
    lengths = [2, 30_000, 8, 0, 8, 1_000, 65, 1, *[5] * 300, 4_097, 64]
    x, y, offsets = make_jagged(lengths, torch.float32, 20, distinct)
    together = torch.ops.shfcas.kendall_statistics(x, y, offsets)
    alone = [torch.ops.shfcas.kendall_statistics(x[a:b], y[a:b]) for a, b in pairwise(offsets.tolist())]
    assert_all_equal(together, [torch.stack(parts) for parts in zip(*alone, strict=True)])


def test_jagged_without_rows():
    x, offsets = torch.empty(0), torch.zeros(1, dtype=torch.int64)
    assert shfcas.kendall_tau(x, x, offsets=offsets).shape == (0,)


def test_results_do_not_depend_on_threads():
    x, y, offsets = make_jagged([8, 70, 3, 64, 65] * 2000, torch.float32, 17, 50)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(shfcas.kendall_counts(x, y, offsets=offsets))
    finally:
        torch.set_num_threads(threads)
    assert_all_equal(results[0], results[1])
    assert_all_equal(results[0], results[2])
