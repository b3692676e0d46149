"""Priorities of the strategies that read the conflict, and of random pairs, by hand."""

from itertools import combinations

import pytest

from shfcas.selection import SELECTABLE
from shfcas.selection.conflict import kendall, mean_pacs, pacs, random_pairs, shf_cas
from tests.support.seed_numbers import number
from tests.support.selection_rows import row

HIGH = row("high", [2.0, 0.5, -1.0, -2.5, 1.0], 0.9)  # mean abs(PACS) 1.4
BOUNDS = {"kendall_threshold": 0.9, "pacs_threshold": 1.0}


def test_shf_cas_orders_by_turn_distance_mean_pacs_and_prompt() -> None:
    found = [(priority, (c.first, c.second)) for priority, c in shf_cas(HIGH, BOUNDS, 0)]
    assert found == [((0, -0.9, -1.4, "high"), (0, 3)), ((1, -0.9, -1.4, "high"), (4, 2))]
    assert [*shf_cas(HIGH, {**BOUNDS, "kendall_threshold": 0.91}, 0)] == []
    assert [c.pair[1] for _, c in shf_cas(HIGH, {**BOUNDS, "pacs_threshold": 2.0}, 0)] == [{0, 3}]


def test_kendall_takes_every_answer() -> None:
    small = {**HIGH, "pacs": [0.2, 0.01, -0.1, -0.25, 0.0]}
    found = [(priority, (c.first, c.second)) for priority, c in kendall(small, BOUNDS, 0)]
    assert found == [((0, -0.9, -1.4, "high"), (0, 3)), ((1, -0.9, -1.4, "high"), (1, 2))]


def test_pacs_orders_by_the_sum_of_both() -> None:
    found = [(priority, (c.first, c.second)) for priority, c in pacs(HIGH, BOUNDS, 0)]
    assert found == [((-4.5, "high", 0), (0, 3)), ((-2.0, "high", 1), (4, 2))]


@pytest.mark.parametrize("strategy", [shf_cas, kendall, pacs])
def test_the_pairing_and_the_seed_are_passed_on(strategy: object) -> None:
    bounds = {"kendall_threshold": 0.0, "pacs_threshold": 0.0}
    for pairing, pairs in (("adjacent", [(2, 3), (0, 4)]), ("all", 10), ("extreme", [(0, 3), (4, 2)])):
        found = [(c.first, c.second) for _, c in strategy(HIGH, bounds, 0, pairing)]
        assert found == pairs or len(found) == pairs
    order = sorted(range(5), key=lambda i: number("random pairing", 6, "high", i))
    found = {c.pair[1] for _, c in strategy(HIGH, bounds, 6, "random")}
    assert found == {frozenset(order[:2]), frozenset(order[2:4])}
    assert [c for _, c in strategy(HIGH, bounds, 0)] == [c for _, c in strategy(HIGH, bounds, 0, "extreme")]


def test_mean_pacs_takes_pairs_in_the_order_of_answers() -> None:
    found = [(priority, (c.first, c.second)) for priority, c in mean_pacs(HIGH, {"mean_pacs_threshold": 1.39}, 0)]
    assert found == [((-1.4, "high", k), pair) for k, pair in enumerate(combinations(range(5), 2))]
    assert [*mean_pacs(HIGH, {"mean_pacs_threshold": 1.4}, 0)] == []


def test_random_pairs_follow_the_numbers_of_prompt_and_pair() -> None:
    found = [(priority, (c.first, c.second)) for priority, c in random_pairs(HIGH, {}, 8)]
    pairs = combinations(range(5), 2)
    assert found == [((number("random pairs", 8, "high", k), "high"), pair) for k, pair in enumerate(pairs)]


@pytest.mark.parametrize(
    ("strategy", "name", "bounds", "expected"),
    [
        ("shf_cas", "kendall_threshold", {}, [0.9]),
        ("kendall", "kendall_threshold", {}, [0.9]),
        ("mean_pacs", "mean_pacs_threshold", {}, [1.4]),
        ("pacs", "pacs_threshold", {}, [2.0, 0.5, 1.0, 2.5, 1.0]),
        ("shf_cas", "pacs_threshold", {"kendall_threshold": 0.9}, [2.0, 0.5, 1.0, 2.5, 1.0]),
        ("shf_cas", "pacs_threshold", {"kendall_threshold": 0.91}, []),
    ],
)
def test_the_values_of_a_quantile(strategy: str, name: str, bounds: dict, expected: list) -> None:
    assert [*SELECTABLE[strategy].bounds[name](HIGH, bounds)] == expected
