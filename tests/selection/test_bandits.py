"""Strategies that read rewards with their uncertainty, against independent implementations that loop over answers."""

import math
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from shfcas.selection import SELECTABLE, Row, SelectionConfig, select
from shfcas.utils.errors import UserError
from tests.support.selection_rows import asked, row

BANDITS = ("delta_ucb", "drts", "maxmin_lcb")


def prompt(name: str, rewards: list[float], deviations: list[float]) -> Row:
    variances = [deviation**2 for deviation in deviations]
    return row(name, [1.0, -1.0, *[0.5] * (len(rewards) - 2)], 0.5, rewards=rewards, reward_variances=variances)


def table(prompts: int = 200, seed: int = 0) -> list[Row]:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(2, 8, prompts)
    return [
        prompt(f"p{i}", draw.normal(size=n).tolist(), draw.exponential(size=n).tolist()) for i, n in enumerate(sizes)
    ]


def pairs(name: str, one: Row, seed: int = 0, **settings: Any) -> list[tuple[int, int]]:
    """One prompt's pairs in order of priority."""
    ranked = sorted(SELECTABLE[name].comparisons(one, {}, seed, **settings), key=lambda found: found[0])
    return [(c.first, c.second) for _, c in ranked]


# DeltaUCB


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_delta_ucb_is_the_largest_difference_of_bounds(beta: float) -> None:
    first = {}
    for one in table():
        upper = [r + beta * math.sqrt(v) for r, v in zip(one["rewards"], one["reward_variances"], strict=True)]
        lower = [r - beta * math.sqrt(v) for r, v in zip(one["rewards"], one["reward_variances"], strict=True)]
        gaps = {(i, j): upper[i] - lower[j] for i, j in permutations(range(len(upper)), 2)}
        order = sorted(gaps, key=lambda pair: -gaps[pair])
        expected = list(dict.fromkeys(frozenset(pair) for pair in order))
        assert [frozenset(pair) for pair in pairs("delta_ucb", one, confidence_beta=beta)] == expected
        first[one["prompt_id"]] = gaps[order[0]]
    # Each prompt gives one pair before any gives another, those of the largest gap first.
    chosen = asked(table(), SelectionConfig("delta_ucb", budget=200, confidence_beta=beta))
    assert [c[0] for c in chosen] == sorted(first, key=lambda name: -first[name])


def test_without_uncertainty_delta_ucb_is_the_reward_margin() -> None:
    one = prompt("a", [0.3, -1.0, 2.0, 0.9], [1.0, 9.0, 0.0, 4.0])
    margin = sorted(SELECTABLE["reward_margin"].comparisons(one, {}, 0), key=lambda found: found[0])
    assert pairs("delta_ucb", one, confidence_beta=0.0) == [(c.first, c.second) for _, c in margin]
    assert pairs("delta_ucb", one)[0] == (1, 3)  # 1.9 + 13 exceeds 3 + 9


# MaxMinLCB


def game(rewards: list[float], deviations: list[float], beta: float) -> tuple[int, int]:
    """The leader and the follower, by exhaustive play."""
    answers = range(len(rewards))

    def bound(i: int, j: int, sign: int) -> float:
        return rewards[i] - rewards[j] + sign * beta * (deviations[i] + deviations[j])

    contenders = [i for i in answers if all(bound(i, j, 1) > 0 for j in answers if j != i)]
    rivals = contenders if len(contenders) > 1 else list(answers)
    replies = {i: min((bound(i, j, -1), j) for j in rivals if j != i) for i in contenders}
    leader = max(contenders, key=lambda i: (replies[i][0], -i))
    return leader, replies[leader][1]


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_maxmin_lcb_plays_the_game(beta: float) -> None:
    single = 0
    for one in table(300):
        deviations = [math.sqrt(v) for v in one["reward_variances"]]
        expected = game(one["rewards"], deviations, beta)
        found = pairs("maxmin_lcb", one, confidence_beta=beta)
        assert found[0] == expected
        assert len({frozenset(pair) for pair in found}) == len(found)
        single += len(found) == 1
    assert 0 < single < 300


def test_maxmin_lcb_by_hand() -> None:
    # Bounds with beta 1. May be the best: 0 (2 +- 1), 1 (1.5 +- 1) and 3 (0 +- 5); 2 (-9 +- 1) may not.
    one = prompt("a", [2.0, 1.5, -9.0, 0.0], [1.0, 1.0, 1.0, 5.0])
    # min_j L: 0 against 3: 2 - 6 = -4; 1 against 3: -4.5; 3 against 0: -2 - 6 = -8.
    assert pairs("maxmin_lcb", one) == [(0, 3), (1, 3)]
    clear = prompt("b", [9.0, 1.0, 2.0], [0.1, 3.0, 0.1])
    assert pairs("maxmin_lcb", clear) == [(0, 1)]  # 8 - 3.1 is less than 7 - 0.2


# Double reverse Thompson sampling


def test_drts_draws_from_the_intervals() -> None:
    rewards, deviations = [0.0, 0.5, 1.0], [1.0, 0.2, 0.6]
    one = [prompt("a", rewards, deviations)]
    draws = np.random.default_rng(0).uniform(-1, 1, (400_000, 3)) * deviations + rewards
    best = np.bincount(draws.argmax(axis=1), minlength=3) / len(draws)
    worst = np.bincount(draws.argmin(axis=1), minlength=3) / len(draws)
    expected: Counter[tuple[int, int]] = Counter()
    for first, second in permutations(range(3), 2):
        expected[first, second] = best[first] * worst[second] / (1 - worst[first])
    counts = Counter(asked(one, SelectionConfig("drts", budget=1), seed)[0][1:] for seed in range(3000))
    likely = [pair for pair in expected if expected[pair] > 0.002]
    assert counts.total() - sum(counts[pair] for pair in likely) < 30
    assert sum((counts[p] - 3000 * expected[p]) ** 2 / (3000 * expected[p]) for p in likely) < 20.5  # 5 degrees


def test_drts_without_uncertainty_pairs_best_and_worst() -> None:
    one = prompt("a", [0.3, -1.0, 2.0, 0.9], [0.0] * 4)
    assert pairs("drts", one) == [(2, 1)]
    equal = prompt("b", [1.0, 1.0, 1.0], [0.0] * 3)  # the first is best and worst: any other is its rival
    met = Counter(pairs("drts", equal, seed)[0] for seed in range(200))
    assert set(met) == {(0, 1), (0, 2)} and 60 < met[0, 1] < 140


# What all have in common


@pytest.mark.parametrize("name", BANDITS)
def test_each_prompt_gives_a_pair_before_one_gives_two(name: str) -> None:
    rows = table(30)
    chosen = asked(rows, SelectionConfig(name, budget=30))
    assert len({c[0] for c in chosen}) == 30


@pytest.mark.parametrize("name", BANDITS)
def test_an_offset_of_a_prompt_does_not_matter(name: str) -> None:
    for one in table(40):
        moved = {**one, "rewards": [reward + 8 for reward in one["rewards"]]}
        assert pairs(name, moved) == pairs(name, one)


@pytest.mark.parametrize("name", BANDITS)
def test_rewards_and_variances_are_needed(name: str) -> None:
    one = {key: value for key, value in table(1)[0].items() if key != "reward_variances"}
    with pytest.raises(UserError, match=f"strategy {name}: the table has no column reward_variances; .*laplace"):
        select([one], SelectionConfig(name))
    with pytest.raises(UserError, match="confidence_beta: expected at least 0, got -1"):
        SelectionConfig(name, confidence_beta=-1.0)
