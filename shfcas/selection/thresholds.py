"""Thresholds as numbers, or as quantiles of the values in a table of any size."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from shfcas.selection.protocol import Bounds, Row
from shfcas.utils.errors import UserError
from shfcas.utils.quantiles import CountPass, Counts, Window, count_prefixes, quantile

CHUNK = 1 << 16


def parse_threshold(text: str | float) -> tuple[float, bool]:
    """The number that a threshold is given as, and whether it is a quantile (`q0.9`).

    Raises:
        UserError: it is neither a number nor a quantile.
    """
    text = str(text).strip()
    try:
        number = float(text.removeprefix("q"))
    except ValueError:
        raise UserError(f"threshold {text!r}: expected a number such as 0.5, or a quantile such as q0.5") from None
    is_quantile = text.startswith("q") or math.isnan(number)
    if is_quantile and not 0 <= number <= 1:
        raise UserError(f"threshold {text!r}: expected a number, or a quantile between q0 and q1")
    return number, is_quantile


def threshold(text: str | float, values: np.ndarray | CountPass) -> float:
    """A threshold given as a number, or as a quantile of the values: an array, or what counts them."""
    number, is_quantile = parse_threshold(text)
    if not is_quantile:
        return number
    counted: CountPass = values if callable(values) else lambda window: [count_prefixes(values, window)]
    found = quantile(counted, number)
    return math.inf if math.isnan(found) else found


def counted_rows(rows: Iterable[Row], values: Callable[[Row, Bounds], Iterable[float]], bounds: Bounds) -> CountPass:
    """Counts the values of all rows, which are gone through anew in each pass."""

    def counted(window: Window) -> Iterator[Counts]:
        every = (value for row in rows for value in values(row, bounds))
        while len(chunk := np.fromiter(islice(every, CHUNK), float)):
            yield count_prefixes(chunk, window)

    return counted
