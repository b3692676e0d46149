"""Thresholds, given as numbers or as quantiles of the values in a table of any size."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from shfcas.selection.protocol import Bounds, Row
from shfcas.utils.config import unexpected
from shfcas.utils.quantiles import CountPass, Counts, Window, count_prefixes, quantile

CHUNK = 1 << 16


def parse_threshold(text: str | float, name: str = "threshold") -> tuple[float, bool]:
    """Returns the number of a threshold, and whether it is a quantile (`q0.9`).

    Args:
        text: a number or a quantile.
        name: the field that errors name.

    Raises:
        UsageError: the text is neither a number nor a quantile.
    """
    text = str(text).strip()
    try:
        number = float(text.removeprefix("q"))
    except ValueError:
        number = math.nan
    is_quantile = text.startswith("q")
    if math.isnan(number) or (is_quantile and not 0 <= number <= 1):
        raise unexpected(name, "a number such as 0.5, or a quantile from q0 to q1", text)
    return number, is_quantile


def threshold(text: str | float, values: np.ndarray | CountPass) -> float:
    """Returns a threshold as a number; a quantile is computed from an array of values or a counting pass."""
    number, is_quantile = parse_threshold(text)
    if not is_quantile:
        return number
    count_pass: CountPass = values if callable(values) else lambda window: [count_prefixes(values, window)]
    found = quantile(count_pass, number)
    return math.inf if math.isnan(found) else found


def count_row_values(
    rows: Iterable[Row], values: Callable[[Row, Bounds], Iterable[float]], bounds: Bounds
) -> CountPass:
    """Returns a pass that counts the values of all rows; each call iterates over the rows again."""

    def count_pass(window: Window) -> Iterator[Counts]:
        every = (value for row in rows for value in values(row, bounds))
        while len(chunk := np.fromiter(islice(every, CHUNK), float)):
            yield count_prefixes(chunk, window)

    return count_pass
