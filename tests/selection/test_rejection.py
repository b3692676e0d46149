"""Rejection sampling of answers: its limits, its random numbers, and the pairs that the strategy rso makes of them."""

import numpy as np
import pytest

from shfcas.selection import SELECTABLE
from shfcas.selection.rejection import rejection_sample
from tests.support.seed_numbers import number
from tests.support.selection_rows import full_table


def test_a_small_beta_takes_the_best_and_a_large_one_any() -> None:
    rewards = np.random.default_rng(0).normal(size=20)
    rng = np.random.default_rng(0)
    assert sorted(rejection_sample(rewards, 5, 1e-6, rng)) == sorted(np.argsort(rewards)[-5:])
    accepted = [i for _ in range(400) for i in rejection_sample(rewards, 5, 1e6, rng)]
    assert set(accepted) == set(range(20)) and abs(np.mean(rewards[accepted]) - rewards.mean()) < 0.1


def test_a_candidate_is_accepted_once_and_the_bound_follows_those_that_are_left() -> None:
    """With the first r_max the second candidate would not be found within the life of the sun."""
    rng = np.random.default_rng(0)
    assert sorted(rejection_sample([100.0, 0.0, 1.0], 3, 0.1, rng)) == [0, 1, 2]
    assert rejection_sample([100.0, 0.0, 1.0], 2, 0.01, rng) == [0, 2]


def test_a_generator_decides_and_nothing_else() -> None:
    rewards = np.random.default_rng(0).normal(size=20)
    first, second = (rejection_sample(rewards, 8, 0.5, np.random.default_rng(3)) for _ in range(2))
    assert first == second != rejection_sample(rewards, 8, 0.5, np.random.default_rng(4))


def test_what_cannot_be_accepted_is_an_error() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="num_samples: expected at most the number of candidates, 2, got 3"):
        rejection_sample([0.0, 1.0], 3, 0.5, rng)
    with pytest.raises(ValueError, match="beta: expected above 0, got"):
        rejection_sample([0.0, 1.0], 1, 0.0, rng)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_each_pass_accepts_by_one_number_per_candidate(beta: float) -> None:
    for seed in range(20):
        rewards = np.random.default_rng(seed).normal(size=7).tolist()
        rng = np.random.default_rng(seed + 100)
        left = rng.permutation(7).tolist()
        expected: list[int] = []
        while len(expected) < 5:
            best = max(rewards[i] for i in left)
            taken = [
                i for i, u in zip(left, rng.random(len(left)), strict=True) if u < np.exp((rewards[i] - best) / beta)
            ]
            expected += taken
            left = [i for i in left if i not in taken]
        assert rejection_sample(rewards, 5, beta, np.random.default_rng(seed + 100)) == expected[:5]


def test_all_candidates_may_be_wanted() -> None:
    assert sorted(rejection_sample([1, 2, 3], 3, 0.5, np.random.default_rng(0))) == [0, 1, 2]
    assert rejection_sample([1, 2, 3], 0, 0.5, np.random.default_rng(0)) == []


@pytest.mark.parametrize("samples", [2, 3, 4, 6])
def test_rso_pairs_neighbours_in_the_order_of_acceptance(samples: int) -> None:
    for one in full_table(30)[1:]:
        name, wanted = one["prompt_id"], min(samples, len(one["rewards"]))
        rng = np.random.default_rng(number("rso pairs", 9, name, bits=63))
        order = rejection_sample(one["rewards"], wanted, 0.3, rng)
        chance = number("rso prompts", 9, name)
        expected = [((k, chance, name), (order[2 * k], order[2 * k + 1])) for k in range(wanted // 2)]
        found = SELECTABLE["rso"].comparisons(one, {}, 9, rso_samples=samples, rso_beta=0.3)
        assert [(priority, (c.first, c.second)) for priority, c in found] == expected
