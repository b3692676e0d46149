"""Scores of committees against loops over pairs and members, and the random numbers of double Thompson sampling."""

import math
import random
from collections.abc import Callable
from itertools import combinations
from statistics import mean, variance

import numpy as np
import pytest

from shfcas.selection import SELECTABLE, Row
from shfcas.selection.committee import member_rewards
from shfcas.selection.pairing import sampled_pairs
from tests.support.seed_numbers import number
from tests.support.selection_rows import row


def table(decimals: int = 3) -> list[Row]:
    draw = np.random.default_rng(0)
    sizes = [(2 + i % 5, 2 + i % 4) for i in range(40)]
    return [
        row(f"p{i}", [1.0] * n, 0.5, member_rewards=draw.normal(scale=2, size=(n, m)).round(decimals).tolist())
        for i, (n, m) in enumerate(sizes)
    ]


def share_of_minority(gaps: list[float]) -> float:
    votes = sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)
    return min(votes, 1 - votes)


def probabilities(gaps: list[float]) -> list[float]:
    return [1 / (1 + math.exp(-gap)) for gap in gaps]


def bits(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


SCORES: dict[str, Callable[[list[float]], float]] = {
    "disagreement": share_of_minority,
    "bald": lambda gaps: bits(mean(probabilities(gaps))) - mean(map(bits, probabilities(gaps))),
    "infomax": lambda gaps: variance(probabilities(gaps)),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_every_pair(name: str) -> None:
    for one in [*table(), *table(0)]:  # rounded to whole numbers, some rewards are equal
        ranked = [*SELECTABLE[name].comparisons(one, {}, 2)]
        found = {(c.first, c.second): -priority[0] for priority, c in ranked}
        assert {priority[2:] for priority, _ in ranked} == {(number("ties", 2, one["prompt_id"]), one["prompt_id"])}
        rewards = one["member_rewards"]
        for i, j in combinations(range(len(rewards)), 2):
            gaps = [a - b for a, b in zip(rewards[i], rewards[j], strict=True)]
            assert found[i, j] == pytest.approx(SCORES[name](gaps), abs=1e-9)
            assert found[i, j] == round(found[i, j], 12)  # so that rounding errors break no ties


def test_member_rewards_are_an_array() -> None:
    found = member_rewards({"prompt_id": "a", "member_rewards": [[1, 2], [3, 4], [5, 6]]})
    assert found.dtype == np.float64 and found.tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_double_thompson_follows_its_random_numbers() -> None:
    for one in table(0):
        rewards, prompt = one["member_rewards"], one["prompt_id"]
        members = [[answer[m] for answer in rewards] for m in range(len(rewards[0]))]
        favourites = [values.index(max(values)) for values in members]
        rng = random.Random(number("double thompson", 4, prompt, bits=63))

        def sample(rng: random.Random = rng, favourites: list[int] = favourites) -> int:
            return favourites[int(rng.randrange(len(favourites)))]

        tries = 0 if favourites == [favourites[0]] * len(favourites) else 30
        expected = sampled_pairs(one, 4, "double thompson", rng=rng, first=sample, second=sample, tries=tries)
        assert [*SELECTABLE["double_thompson"].comparisons(one, {}, 4)] == [*expected]
