"""Thresholds of empty and of long tables, which are counted a piece at a time."""

import math
from itertools import chain

import numpy as np
import pytest

from shfcas.selection import Bounds, Row, threshold, thresholds
from shfcas.selection.thresholds import count_row_values, parse_threshold
from shfcas.utils.errors import UsageError
from shfcas.utils.quantiles import Window


def test_a_threshold_says_whether_it_is_a_quantile() -> None:
    assert parse_threshold("q0.25") == (0.25, True)
    assert parse_threshold(" -3 ") == (-3.0, False)
    assert (
        parse_threshold(7) == (7.0, False)
        and parse_threshold("q0") == (0.0, True)
        and parse_threshold("q1") == (1, True)
    )
    assert parse_threshold("inf") == (math.inf, False)


def test_an_error_names_the_field() -> None:
    with pytest.raises(
        UsageError, match=r"^pacs_threshold: expected a number such as 0.5, or a quantile from q0 to q1, got 'x'"
    ):
        parse_threshold("x", "pacs_threshold")
    with pytest.raises(UsageError, match=r"^threshold: expected .*, got 'q2'"):
        parse_threshold("q2")


def test_nothing_passes_the_quantile_of_no_values() -> None:
    assert threshold("q0.5", np.array([])) == math.inf
    assert threshold("0.5", np.array([])) == 0.5


def test_values_are_counted_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "CHUNK", 4)
    rows: list[Row] = [{"values": [5.0, 1.0, 3.0]}, {"values": []}, {"values": [2.0] * 7}]
    given: list[Bounds] = []

    def values(row: Row, bounds: Bounds) -> list[float]:
        given.append(bounds)
        return row["values"]

    bounds = {"earlier": 0.5}
    counted = count_row_values(rows, values, bounds)
    pieces = [times.sum() for _, times in counted(Window(0, (0,), 16))]
    assert pieces == [4, 4, 2] and given == [bounds] * 3
    for level in (0.0, 0.3, 0.75, 0.95, 1.0):  # each call reads the rows again
        expected = np.quantile([*chain.from_iterable(row["values"] for row in rows)], level)
        assert threshold(f"q{level}", counted) == pytest.approx(expected, rel=1e-15)
