"""Exact quantiles of more numbers than fit into memory, in a few passes over them and in constant memory."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

STEP = 16  # bits of a number that a pass tells apart
FEW = 1 << 18  # so many numbers are told apart by all of their bits


class Window(NamedTuple):
    """What a pass counts: numbers by their leading bits.

    Attributes:
        known: so many leading bits are known.
        prefixes: what these are in the numbers that count.
        bits: so many leading bits are told apart.
    """

    known: int
    prefixes: tuple[int, ...]
    bits: int


Counts = tuple[np.ndarray, np.ndarray]  # leading bits as uint64, ascending, and how often each occurs
Counted = Callable[[Window], Iterable[Counts]]  # a pass over all numbers; counts of parts of them add up


def quantile(counted: Counted, level: float) -> float:
    """The quantile of all values, to the last digit what `numpy.quantile` gives for them in one array.

    The first pass counts the values by their leading bits. Each further one looks at those alone that share them with
    the two values wanted, which takes two passes, or up to four where very many do.

    Args:
        counted: called for each pass; counts of the same numbers every time, none of them NaN.
        level: from 0 (the least value) to 1 (the greatest).

    Returns:
        The quantile, linearly interpolated; NaN of no values.
    """
    window, share = Window(0, (0,), STEP), 0.0
    wanted: list[tuple[int, int]] = []  # leading bits of either value, and its place among those that share them
    while window.known < 64:
        keys, times = add_up(counted(window))
        if not wanted:
            if not len(keys):
                return float("nan")
            position = level * (int(times.sum()) - 1)
            wanted, share = [(0, int(np.floor(position))), (0, int(np.ceil(position)))], position % 1
        prefixes, narrowed, inside = keys >> np.uint64(window.bits - window.known), [], {}
        for prefix, place in wanted:
            of_prefix = prefixes == np.uint64(prefix)
            below = np.cumsum(times[of_prefix])
            at = int(np.searchsorted(below, place, side="right"))
            if at == len(below):
                raise AssertionError("a later pass saw other numbers than the first")
            key, count = int(keys[of_prefix][at]), int(times[of_prefix][at])
            narrowed.append((key, place - int(below[at]) + count))
            inside[key] = count
        few = sum(inside.values()) <= FEW
        wanted, window = narrowed, Window(window.bits, tuple(inside), 64 if few else window.bits + STEP)
    low, high = (_value(key) for key, _ in wanted)
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def count(values: np.ndarray, window: Window) -> Counts:
    """How often the leading bits of a window occur among some numbers."""
    keys = _ordered(values)
    if window.known:
        keys = keys[np.isin(keys >> np.uint64(64 - window.known), np.array(window.prefixes, np.uint64))]
    return np.unique(keys >> np.uint64(64 - window.bits), return_counts=True)


def add_up(parts: Iterable[Counts]) -> Counts:
    """The counts of all parts together, in memory that grows with the different keys alone."""
    kept: list[Counts] = []
    size, most = 0, 1 << STEP
    for part in parts:
        kept.append(part)
        size += len(part[0])
        if size > most:
            kept = [_merged(kept)]
            size = len(kept[0][0])
            most = 2 * size + (1 << STEP)
    return _merged(kept)


def _merged(parts: list[Counts]) -> Counts:
    nothing = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    keys, place = np.unique(np.concatenate([nothing[0], *(k for k, _ in parts)]), return_inverse=True)
    times = np.bincount(place, np.concatenate([nothing[1], *(t for _, t in parts)]), len(keys))
    return keys, times.astype(np.int64)


def _ordered(values: np.ndarray) -> np.ndarray:
    """The bits of float64 numbers as integers of the same order."""
    bits = (np.asarray(values, np.float64) + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _value(key: int) -> float:
    """The number that `_ordered` makes this integer of."""
    bits = np.uint64(key)
    sign = np.uint64(1 << 63)
    return float((bits ^ sign if bits & sign else ~bits).view(np.float64))
