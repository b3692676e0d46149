"""What must hold whatever the values, on jagged batches and on their rows one by one, in every kind of number."""

import struct
from itertools import accumulate, pairwise

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from rows import assert_all_equal

import shfcas

# Short rows over few values tie often; few rows above 64 values are sorted instead of compared pair by pair.
few_values = st.integers(-3, 3)


def half(code: int) -> float:
    """The number whose 16 bits are abs(code), negative if the code is; 0x7c00 is infinity."""
    (value,) = struct.unpack("<e", struct.pack("<H", abs(code) | (0x8000 if code < 0 else 0)))
    return value


any_values = st.one_of(few_values.map(float), st.integers(-0x7C00, 0x7C00).map(half), st.just(-0.0))
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGER = (torch.int64, torch.int32, torch.int8)


@st.composite
def batches(draw, dtypes=FLOATING + INTEGER):
    """x, y and offsets of a batch of rows of very different lengths."""
    dtype = draw(st.sampled_from(dtypes))
    value = any_values if dtype.is_floating_point else few_values
    rows = draw(st.lists(st.lists(st.tuples(value, value), max_size=90), max_size=6))
    x, y = (torch.tensor([pair[side] for row in rows for pair in row], dtype=dtype) for side in (0, 1))
    return x, y, torch.tensor([0, *accumulate(map(len, rows))])


def counts(batch):
    return shfcas.kendall_counts(batch[0], batch[1], offsets=batch[2])


@given(batches())
def test_every_pair_is_counted_once(batch):
    concordant, discordant, tied_x, tied_y, tied_both = counts(batch)
    n = batch[2].diff()
    assert torch.equal(concordant + discordant + tied_x + tied_y - tied_both, n * (n - 1) // 2)
    assert (torch.stack([concordant, discordant, tied_both]) >= 0).all()
    assert (tied_both <= torch.minimum(tied_x, tied_y)).all()


@given(batches())
def test_a_row_is_the_same_alone_and_in_a_batch(batch):
    x, y, offsets = batch
    for function in (shfcas.kendall_counts, shfcas.kendall_test):
        together = function(x, y, offsets=offsets)
        for row, (begin, end) in enumerate(pairwise(offsets.tolist())):
            torch.testing.assert_close(
                [part[row] for part in together],
                list(function(x[begin:end], y[begin:end])),
                rtol=1e-14,
                atol=0,
                equal_nan=True,
            )


@given(batches())
def test_symmetric_in_x_and_y(batch):
    x, y, offsets = batch
    concordant, discordant, tied_x, tied_y, tied_both = counts(batch)
    assert_all_equal(counts((y, x, offsets)), (concordant, discordant, tied_y, tied_x, tied_both))
    one, other = (shfcas.kendall_test(*sides, variant="c", offsets=offsets) for sides in ((x, y), (y, x)))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0, equal_nan=True)


@given(batches())
def test_negation_swaps_concordant_and_discordant(batch):
    x, y, offsets = batch
    concordant, discordant, *ties = counts(batch)
    assert_all_equal(counts((x, -y, offsets)), (discordant, concordant, *ties))
    assert_all_equal([shfcas.kendall_tau(x, -y, offsets=offsets)], [-shfcas.kendall_tau(x, y, offsets=offsets)])
    greater = shfcas.kendall_test(x, y, alternative="greater", offsets=offsets).pvalue
    less = shfcas.kendall_test(x, -y, alternative="less", offsets=offsets).pvalue
    torch.testing.assert_close(greater, less, rtol=1e-14, atol=0, equal_nan=True)


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(batch, random):
    x, y, offsets = batch
    order = [i for begin, end in pairwise(offsets.tolist()) for i in random.sample(range(begin, end), end - begin)]
    order = torch.tensor(order, dtype=torch.int64)
    assert_all_equal(counts((x[order], y[order], offsets)), counts(batch))


@given(batches())
def test_strictly_monotone_maps_change_nothing(batch):
    x, y, offsets = batch
    expected = counts(batch)
    assert_all_equal(counts((x.double(), y.double(), offsets)), expected)
    ranks_x, ranks_y = (side.unique(return_inverse=True)[1] for side in (x, y))
    assert_all_equal(counts((ranks_x, ranks_y, offsets)), expected)
    assert_all_equal(counts((ranks_x**3 - 7, ranks_y * 2 + 1, offsets)), expected)


@given(batches())
def test_a_row_agrees_with_itself(batch):
    x, _, offsets = batch
    _, discordant, tied_x, tied_y, tied_both = counts((x, x, offsets))
    assert not discordant.any()
    assert torch.equal(tied_x, tied_y)
    assert torch.equal(tied_x, tied_both)
    tau = shfcas.kendall_tau(x, x, offsets=offsets)
    torch.testing.assert_close(tau[~tau.isnan()], torch.ones_like(tau[~tau.isnan()]))


@given(st.lists(st.lists(any_values, min_size=9, max_size=9), min_size=1, max_size=7))
def test_a_matrix_holds_the_distances_of_all_pairs(rows):
    x = torch.tensor(rows, dtype=torch.float32)
    matrix = shfcas.kendall_distance_matrix(x)
    assert torch.equal(matrix, matrix.t())
    assert torch.equal(matrix, shfcas.kendall_distance(x[:, None].expand(-1, len(x), -1), x.expand(len(x), -1, -1)))
    # Tied pairs make distances smaller, so that only rows without ties obey the triangle inequality.
    if all(len(set(row)) == len(row) for row in rows):
        assert (matrix[:, :, None] <= matrix[:, None] + matrix[None] + 1e-12).all()


moderate = st.floats(-1e3, 1e3)


@given(st.lists(st.tuples(moderate, moderate), min_size=3, max_size=70), st.floats(0.5, 4), st.floats(-8, 8))
def test_pacs_ignores_scale_and_shift(row, scale, shift):
    x, y = torch.tensor(row, dtype=torch.float64).t()
    assume(min(x.std(correction=0), y.std(correction=0)) > 1e-2)
    offsets = torch.tensor([0, len(row), 2 * len(row)])
    both = [torch.cat([x, x * scale + shift]), torch.cat([y, y])]
    scores, scaled = shfcas.pacs(*both, offsets=offsets).view(2, -1)
    torch.testing.assert_close(scaled, scores, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shfcas.pacs(y, x), -shfcas.pacs(x, y))


@given(st.lists(st.lists(st.floats(-50, 50), min_size=1, max_size=40), min_size=1, max_size=4), st.floats(-9, 9))
def test_probabilities_sum_to_one_whatever_the_shift(rows, shift):
    for row in rows:
        logits = torch.tensor(row, dtype=torch.float64).expand(len(row), 1, len(row))
        labels = torch.arange(len(row))[:, None]
        logprobs = shfcas.sequence_logprobs(logits, labels)
        assert abs(logprobs.exp().sum().item() - 1) < 1e-12
        torch.testing.assert_close(shfcas.sequence_logprobs(logits + shift, labels), logprobs, rtol=1e-10, atol=1e-10)
