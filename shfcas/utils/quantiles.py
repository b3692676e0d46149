"""Exact quantiles of more numbers than fit into memory, in a few passes and in constant memory."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

STEP = 16  # additional leading bits counted per pass
FEW_VALUES = 1 << 18  # up to this many remaining values, the next pass counts all bits


class Window(NamedTuple):
    """Request of one pass: count the numbers with given leading bits by some more leading bits.

    Attributes:
        known: number of leading bits already known.
        prefixes: values of the known leading bits; other numbers are not counted.
        bits: number of leading bits to count by.
    """

    known: int
    prefixes: tuple[int, ...]
    bits: int


Counts = tuple[np.ndarray, np.ndarray]  # leading bits as uint64, ascending, and the frequency of each
CountPass = Callable[[Window], Iterable[Counts]]  # one pass over all numbers; yields the counts of parts of them


def quantile(count_pass: CountPass, level: float) -> float:
    """Returns the quantile of all values, identical to `numpy.quantile` of a single array of them.

    The first pass counts the values by their leading bits. Each further pass counts only values that share these
    bits with one of the two neighbours of the quantile. Two passes are enough, or up to four if very many values
    share the leading bits.

    Args:
        count_pass: called once per pass; must count the same numbers every time, none of them NaN.
        level: from 0 (minimum) to 1 (maximum).

    Returns:
        The quantile, linearly interpolated; NaN without values.
    """
    window, share = Window(0, (0,), STEP), 0.0
    wanted: list[tuple[int, int]] = []  # per neighbour: its leading bits, and its rank among values that share them
    while window.known < 64:
        keys, times = merge_counts(count_pass(window))
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
                raise AssertionError("count_pass: expected the same numbers in every pass, got different ones")
            key, count = int(keys[of_prefix][at]), int(times[of_prefix][at])
            narrowed.append((key, place - int(below[at]) + count))
            inside[key] = count
        few = sum(inside.values()) <= FEW_VALUES
        wanted, window = narrowed, Window(window.bits, tuple(inside), 64 if few else window.bits + STEP)
    low, high = (_value(key) for key, _ in wanted)
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def count_prefixes(values: np.ndarray, window: Window) -> Counts:
    """Counts some numbers by the leading bits of a window."""
    keys = _ordered(values)
    if window.known:
        keys = keys[np.isin(keys >> np.uint64(64 - window.known), np.array(window.prefixes, np.uint64))]
    return np.unique(keys >> np.uint64(64 - window.bits), return_counts=True)


def merge_counts(parts: Iterable[Counts]) -> Counts:
    """Returns the sum of the counts of all parts; memory grows only with the number of distinct keys."""
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
    """Returns the bits of float64 numbers as unsigned integers of the same order."""
    bits = (np.asarray(values, np.float64) + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _value(key: int) -> float:
    """Returns the number that `_ordered` maps to this integer."""
    bits = np.uint64(key)
    sign = np.uint64(1 << 63)
    return float((bits ^ sign if bits & sign else ~bits).view(np.float64))
