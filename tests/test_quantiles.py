"""Quantiles of chunks are numpy's of the whole."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shfcas.quantiles import quantile

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64) | st.sampled_from([0.0, -0.0, 0.5, 1.0, 5e-324])


@given(st.lists(st.lists(numbers, max_size=20), max_size=6), st.floats(0, 1))
def test_equals_numpy(lists: list[list[float]], level: float) -> None:
    chunks = [np.array(values, float) for values in lists]
    whole = np.concatenate([np.zeros(0), *chunks])
    with np.errstate(over="ignore", invalid="ignore"):
        found = quantile(lambda: chunks, level)
        if len(whole) == 0:
            assert math.isnan(found)
        else:
            np.testing.assert_array_equal(found, np.quantile(whole, level))


@pytest.mark.parametrize("level", [0, 0.1, 0.25, 0.5, 0.75, 0.999, 1])
def test_many_values_with_many_ties(level: float) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.integers(0, 29, 50_000) / 28, rng.standard_normal(50_000)])
    passes = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal passes
        passes += 1
        yield from np.array_split(values, 7)

    assert quantile(chunks, level) == np.quantile(values, level)
    assert passes == 2


def test_values_that_change_between_the_passes_are_noticed() -> None:
    passes = iter([[np.array([1.0, 1.1])], [np.array([5.0])]])
    with pytest.raises(AssertionError, match="other numbers"):
        quantile(lambda: next(passes), 0.5)
