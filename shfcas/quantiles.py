"""Exact quantiles of more numbers than fit into memory, in two passes over them."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

Chunks = Callable[[], Iterable[np.ndarray]]
BITS = 20  # of a number that the first pass tells apart: 256 bins to each power of two


def quantile(chunks: Chunks, level: float) -> float:
    """The quantile of all values, to the last digit what `numpy.quantile` gives for them in one array.

    The first pass counts the values by their leading bits; the second keeps those that share them with the two
    values wanted, each once.

    Args:
        chunks: called for each pass; arrays of the same numbers every time, none of them NaN.
        level: from 0 (the least value) to 1 (the greatest).

    Returns:
        The quantile, linearly interpolated; NaN of no values.
    """
    counts = np.zeros(1 << BITS, np.int64)
    for chunk in chunks():
        counts += np.bincount(_ordered(chunk) >> np.uint64(64 - BITS), minlength=1 << BITS)
    below = np.cumsum(counts)
    if below[-1] == 0:
        return float("nan")
    position = level * (below[-1] - 1)
    places = int(np.floor(position)), int(np.ceil(position))
    bins = [int(np.searchsorted(below, place, side="right")) for place in places]
    kept: dict[int, Counter[float]] = {number: Counter() for number in bins}
    for chunk in chunks():
        numbers = _ordered(chunk) >> np.uint64(64 - BITS)
        for number, counter in kept.items():
            values, times = np.unique(chunk[numbers == number], return_counts=True)
            counter.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    low, high = (_at(kept[n], place - int(below[n] - counts[n])) for n, place in zip(bins, places, strict=True))
    share = position - places[0]
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def _ordered(values: np.ndarray) -> np.ndarray:
    """The bits of float64 numbers as integers of the same order."""
    bits = (np.asarray(values, np.float64) + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _at(counter: Counter[float], place: int) -> float:
    """The value at a place of the sorted values."""
    for value in sorted(counter):
        place -= counter[value]
        if place < 0:
            return value
    raise AssertionError("the second pass saw other numbers than the first")
