"""Quantiles of chunks are numpy's of the whole."""

import math
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shfcas.utils import quantiles
from shfcas.utils.quantiles import CountPass, Counts, Window, count_prefixes, merge_counts, quantile

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64) | st.sampled_from([0.0, -0.0, 0.5, 1.0, 5e-324])


def counted(chunks: list[np.ndarray]) -> CountPass:
    return lambda window: [count_prefixes(chunk, window) for chunk in chunks]


@pytest.mark.parametrize("few", [0, 3, 1 << 18])
@given(lists=st.lists(st.lists(numbers, max_size=20), max_size=6), level=st.floats(0, 1))
def test_equals_numpy(few: int, lists: list[list[float]], level: float) -> None:
    chunks = [np.array(values, float) for values in lists]
    whole = np.concatenate([np.zeros(0), *chunks])
    with pytest.MonkeyPatch.context() as patch, np.errstate(over="ignore", invalid="ignore"):
        patch.setattr(quantiles, "FEW_VALUES", few)  # as if there were very many
        found = quantile(counted(chunks), level)
        if len(whole) == 0:
            assert math.isnan(found)
        else:
            np.testing.assert_array_equal(found, np.quantile(whole, level))


@pytest.mark.parametrize(("few", "most_passes"), [(1 << 18, 2), (1000, 4)])
@pytest.mark.parametrize("level", [0, 0.1, 0.25, 0.5, 0.75, 0.999, 1])
def test_many_values_with_many_ties(level: float, few: int, most_passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiles, "FEW_VALUES", few)
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.integers(0, 29, 50_000) / 28, rng.standard_normal(50_000)])
    passes = 0

    def chunks(window: Window) -> Iterator[Counts]:
        nonlocal passes
        passes += 1
        yield from (count_prefixes(chunk, window) for chunk in np.array_split(values, 7))

    assert quantile(chunks, level) == np.quantile(values, level)
    assert 2 <= passes <= most_passes


def test_what_a_pass_gives_does_not_grow_with_the_values() -> None:
    """All of these share their first 16 bits, so the second pass looks at all of them too."""
    values = 1 + np.random.default_rng(0).random(500_000) * 2**-4
    kept: list[int] = []

    def chunks(window: Window) -> Iterator[Counts]:
        part = merge_counts(count_prefixes(chunk, window) for chunk in np.array_split(values, 9))
        kept.append(len(pickle.dumps(part)))
        yield part

    assert quantile(chunks, 0.3) == np.quantile(values, 0.3)
    assert len(kept) == 3 and max(kept) < 1.1e6 < values.nbytes


def test_counts_of_parts_add_up() -> None:
    values = np.random.default_rng(0).standard_normal(400_000)
    window = Window(0, (0,), 40)
    added = merge_counts(count_prefixes(chunk, window) for chunk in np.array_split(values, 31))
    for one, other in zip(added, count_prefixes(values, window), strict=True):
        np.testing.assert_array_equal(one, other)


def test_values_that_change_between_the_passes_are_noticed() -> None:
    passes = iter([[np.array([1.0, 1.1])], [np.array([5.0])]])
    with pytest.raises(AssertionError, match="same numbers"):
        quantile(lambda window: counted(next(passes))(window), 0.5)
