"""Pairs of a prompt's answers and their priorities, by hand and against loops over all pairs."""

import random
from itertools import combinations, count
from typing import Any

import numpy as np
import pytest

from shfcas.selection import Row
from shfcas.selection.pairing import (
    MOST_ANSWERS,
    PAIRINGS,
    all_pairs,
    check_pairs,
    pair_positions,
    sampled_pairs,
    scored_pairs,
)
from shfcas.utils.errors import UserError
from tests.support.seed_numbers import number
from tests.support.selection_rows import row


def table() -> list[Row]:
    draw = np.random.default_rng(0)
    return [row(f"p{i}", draw.standard_normal(2 + i % 7).tolist(), 0.5) for i in range(42)]


def paired(name: str, one: Row, answers: list[int] | None = None, seed: int = 0) -> list[tuple[int, int]]:
    found = [*PAIRINGS[name](one, [*range(len(one["pacs"]))] if answers is None else answers, seed)]
    assert {c.prompt_id for c in found} <= {one["prompt_id"]} and not any(c.audit for c in found)
    return [(c.first, c.second) for c in found]


def test_opposed_pairs_have_the_largest_gaps_that_are_left() -> None:
    for one in table():
        pacs, left = one["pacs"], {*range(len(one["pacs"]))}
        for first, second in paired("extreme", one):
            assert (pacs[first], pacs[second]) == (max(pacs[i] for i in left), min(pacs[i] for i in left))
            left -= {first, second}
        assert len(left) == len(pacs) % 2


def test_adjacent_pairs_are_neighbours_and_the_largest_come_first() -> None:
    for one in table():
        pacs = one["pacs"]
        odd = {min(range(len(pacs)), key=lambda i: abs(pacs[i]))} if len(pacs) % 2 else set()
        order = sorted({*range(len(pacs))} - odd, key=lambda i: pacs[i], reverse=True)
        expected = {(order[k], order[k + 1]) for k in range(0, len(order), 2)}
        found = paired("adjacent", one)
        assert set(found) == expected and len(found) == len(expected)
        sizes = [abs(pacs[i]) + abs(pacs[j]) for i, j in found]
        assert sizes == sorted(sizes, reverse=True)


def test_crossed_pairs_are_all_pairs_by_their_gap() -> None:
    for one in table():
        pacs = one["pacs"]
        pairs = [(i, j) if pacs[i] > pacs[j] else (j, i) for i, j in combinations(range(len(pacs)), 2)]
        assert paired("all", one) == sorted(pairs, key=lambda pair: pacs[pair[0]] - pacs[pair[1]], reverse=True)
        assert len(paired("all", one, [0, 1])) == 1


def test_random_pairs_follow_the_numbers_of_their_answers() -> None:
    for one in table():
        pacs = one["pacs"]
        order = sorted(range(len(pacs)), key=lambda i: number("random pairing", 7, one["prompt_id"], i))
        expected = [sorted(order[k : k + 2], key=lambda i: -pacs[i]) for k in range(0, len(order) - 1, 2)]
        assert paired("random", one, seed=7) == [*map(tuple, expected)]
    # Neither seed nor prompt may be left out of the numbers.
    same = [row(name, [3.0, 2.0, 1.0, 0.0], 0.5) for name in "abcdefgh"]
    assert len({tuple(paired("random", one)) for one in same}) > 1
    assert len({tuple(paired("random", same[0], seed=seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize("name", PAIRINGS)
def test_only_the_given_answers_are_paired(name: str) -> None:
    one = row("a", [5.0, 1.0, -4.0, 3.0, -2.0], 0.5)
    assert {i for pair in paired(name, one, [4, 1, 3, 0]) for i in pair} == {0, 1, 3, 4}
    assert paired(name, one, [2]) == paired(name, one, []) == []
    assert [c.pair for c in PAIRINGS[name](one, [0, 2], 0)] == [("a", frozenset((0, 2)))]


def test_all_pairs_and_their_positions_agree() -> None:
    for answers in range(2, 7):
        one = row("a", [0.5] * answers, 0.5)
        expected = [*combinations(range(answers), 2)]
        assert [(c.prompt_id, c.first, c.second) for c in all_pairs(one)] == [("a", *pair) for pair in expected]
        assert [*zip(*(half.tolist() for half in pair_positions(one)), strict=True)] == expected


def test_the_most_answers_are_still_allowed() -> None:
    many = row("many", [0.0] * MOST_ANSWERS, 0.5)
    check_pairs(many, MOST_ANSWERS)
    assert next(all_pairs(many)).pair == ("many", frozenset((0, 1)))
    more = row("more", [0.0] * (MOST_ANSWERS + 1), 0.5)
    for refused in (lambda: pair_positions(more), lambda: next(all_pairs(more)), lambda: paired("all", more)):
        with pytest.raises(UserError, match=r"^prompt 'more': .* 4,096 .*, got 4,097 with 8,390,656 pairs"):
            refused()


def test_priorities_of_scores_by_hand() -> None:
    one = row("a", [0.0, 0.0, 0.0, 0.0], 0.5)
    # Pairs 01 02 03 12 13 23. Equal scores are numbered, in the order of the pairs; each score from 0.
    found = [*scored_pairs(one, np.array([1.0, 2.0, 1.0, -3.0, 2.0, 1.0]), 5)]
    chance = number("ties", 5, "a")
    assert [(priority, (c.first, c.second)) for priority, c in found] == [
        ((-2.0, 0, chance, "a"), (0, 2)),
        ((-2.0, 1, chance, "a"), (1, 3)),
        ((-1.0, 0, chance, "a"), (0, 1)),
        ((-1.0, 1, chance, "a"), (0, 3)),
        ((-1.0, 2, chance, "a"), (2, 3)),
        ((3.0, 0, chance, "a"), (1, 2)),
    ]


def drawn(firsts: Any, seconds: Any, tries: int, answers: int = 4) -> list[tuple[Any, tuple[int, int]]]:
    one = row("a", [0.0] * answers, 0.5)
    settings = {"rng": random.Random(1), "first": lambda: next(firsts), "second": lambda: next(seconds), "tries": tries}
    return [(p, (c.first, c.second)) for p, c in sampled_pairs(one, 3, "some", **settings)]


def test_the_second_answer_is_sampled_until_it_differs() -> None:
    chance = number("some prompts", 3, "a")
    seconds = iter([0, 0, 1, 2, 3, 3, 0, 7])
    # 0 meets 1 at the third try, 1 meets 2 at the first, 2 meets 3, and 3 meets 0 at the second.
    found = drawn(iter([0, 1, 2, 3]), seconds, 3)
    assert found == [((k, chance, "a"), pair) for k, pair in enumerate([(0, 1), (1, 2), (2, 3), (3, 0)])]
    assert next(seconds) == 7  # no more are drawn than are needed


def test_a_repeated_pair_is_dropped_in_either_order() -> None:
    found = drawn(iter([0, 1, 2, 0]), iter([1, 0, 3, 1]), 1)
    assert [(p[0], pair) for p, pair in found] == [(0, (0, 1)), (1, (2, 3))]


@pytest.mark.parametrize("tries", [0, 2])
def test_without_a_different_one_the_second_answer_is_any_other(tries: int) -> None:
    asked = count()
    found = drawn(iter([2] * 30), iter(2 for _ in asked), tries, 30)
    rng = random.Random(1)
    others = [*dict.fromkeys((3 + rng.randrange(29)) % 30 for _ in range(30))]
    assert [pair for _, pair in found] == [(2, other) for other in others] and 2 not in others
    assert next(asked) == 30 * tries
