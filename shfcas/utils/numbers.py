"""Numbers as people read them: fixed digits, never a negative zero."""

import math
from collections.abc import Mapping


def fixed(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Formats a number with fixed digits; a dash for None and NaN.

    >>> fixed(-0.0004), fixed(0.5, 2, sign=True), fixed(None)
    ('0.000', '+0.50', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    return f"{value:+z.{digits}f}" if sign else f"{value:z.{digits}f}"


def interval(found: Mapping[str, float | None] | None, digits: int = 3, sign: bool = False) -> str:
    """Formats a mean or value with its interval, `low` to `high`; a dash if there is none.

    >>> interval({"mean": 0.5, "low": -0.0001, "high": 1.0}, 2)
    '0.50 [0.00, 1.00]'
    """
    middle = None if found is None else found.get("mean", found.get("value"))
    if found is None or middle is None or math.isnan(middle):
        return "-"
    low, high = (fixed(found[key], digits, sign) for key in ("low", "high"))
    return f"{fixed(middle, digits, sign)} [{low}, {high}]"
