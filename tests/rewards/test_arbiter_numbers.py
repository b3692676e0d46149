"""The arbiter's formulas against the same formulas written out one pair at a time, and against numbers by hand."""

import math

import numpy as np
import pytest

from shfcas.rewards import arbiter
from shfcas.rewards.arbiter import (
    Arbiter,
    Pairs,
    fit_arbiter,
    fit_best_grouping,
    most_informative,
    prior_arbiter,
    selection_weights,
)

MEAN = np.array([0.8, -0.3, 0.4])
COVARIANCE = np.array([[0.5, 0.1, -0.2], [0.1, 0.3, 0.05], [-0.2, 0.05, 0.6]])
POSTERIOR = Arbiter(("a",), MEAN, COVARIANCE, 0.7, -1.0, 9)


def pairs(count: int = 12, groups: str = "ab", seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    return Pairs(
        rng.normal(size=count), rng.normal(size=count), np.array([groups[i % len(groups)] for i in range(count)])
    )


def features_of(some: Pairs, i: int) -> np.ndarray:
    r, p = some.reward_gap[i], some.policy_gap[i]
    return np.array([r, p, r if some.group[i] == "a" else 0.0])


def test_a_probability_is_that_of_the_formula() -> None:
    some = pairs()
    for i, found in enumerate(POSTERIOR.probability(some)):
        x = features_of(some, i)
        variance = x @ COVARIANCE @ x + (0.0 if some.group[i] == "a" else (0.7 * some.reward_gap[i]) ** 2)
        logit = x @ MEAN / math.sqrt(1 + math.pi / 8 * variance)
        assert found == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)


def test_rows_of_trust_name_their_source_and_group() -> None:
    rows = POSTERIOR.trust()
    assert [(row["source"], row["group"]) for row in rows] == [
        ("reward model", ""),
        ("policy", ""),
        ("reward model", "a"),
    ]
    assert [row["trust"] for row in rows] == pytest.approx([0.8, -0.3, 1.2])
    halves = [1.959964 * math.sqrt(v) for v in (0.5, 0.3, 0.5 + 0.6 - 0.4)]
    assert [row["high"] - row["trust"] for row in rows] == pytest.approx(halves, abs=1e-6)
    assert [row["trust"] - row["low"] for row in rows] == pytest.approx(halves, abs=1e-6)


def test_the_prior_is_that_of_the_module_or_the_one_given() -> None:
    usual = arbiter.PRIOR_SD**2 * np.eye(2)
    assert np.array_equal(prior_arbiter().covariance, usual)
    assert fit_arbiter(pairs(), np.zeros(12), weights=np.zeros(12), spread=0.0).covariance == pytest.approx(usual)
    empty = prior_arbiter((0.25, 0.75), deviation=3.0)
    assert (empty.groups, empty.spread, empty.evidence, empty.labels) == ((), 0.0, 0.0, 0)
    assert empty.mean.tolist() == [0.25, 0.75] and empty.covariance.tolist() == [[9.0, 0.0], [0.0, 9.0]]
    some = pairs()
    nothing = fit_arbiter(some, np.zeros(12), weights=np.zeros(12), spread=0.5, trust=(0.25, 0.75), deviation=3.0)
    assert nothing.mean == pytest.approx([0.25, 0.75, 0.0, 0.0]) and nothing.evidence == pytest.approx(0.0, abs=1e-12)
    assert nothing.covariance == pytest.approx(np.diag([9.0, 9.0, 0.25, 0.25]))
    assert (nothing.groups, nothing.spread, nothing.labels) == (("a", "b"), 0.5, 12)
    alone = fit_arbiter(some, np.zeros(12), weights=np.zeros(12), spread=0.0, deviation=3.0)
    assert (alone.groups, alone.spread) == ((), 0.0) and alone.covariance == pytest.approx(9 * np.eye(2))


def test_groups_are_texts() -> None:
    some = pairs(3)
    assert some.regrouped(None).group.tolist() == ["", "", ""]
    assert some.regrouped([1, 2, 1]).group.tolist() == ["1", "2", "1"]
    assert some.regrouped(None).reward_gap is some.reward_gap
    part = some[np.array([True, False, True])]
    assert part.group.tolist() == ["a", "a"] and part.policy_gap.tolist() == some.policy_gap[[0, 2]].tolist()


def test_one_label_is_a_label() -> None:
    one = fit_arbiter(pairs(1), np.ones(1))
    assert one.labels == 1 and one.evidence < 0


def test_one_group_has_no_term_of_its_own_and_several_have_the_usual_spread() -> None:
    some, outcome = pairs(40), (np.arange(40) % 3 > 0).astype(float)
    # Labels that the reward gap decides would have more evidence under a wider prior, but one group has one trust.
    sure = fit_arbiter(some.regrouped(None), (some.reward_gap > 0).astype(float))
    wide = fit_arbiter(some.regrouped(None), (some.reward_gap > 0).astype(float), spread=1.4)
    assert (sure.groups, sure.spread) == ((), 0.0) and wide.evidence > sure.evidence
    found, expected = fit_arbiter(some, outcome), fit_arbiter(some, outcome, spread=arbiter.SPREAD)
    assert (found.spread, found.evidence) == (arbiter.SPREAD, expected.evidence)
    assert found.mean.tolist() == expected.mean.tolist()


def test_every_grouping_is_fitted_with_the_weights_and_the_prior() -> None:
    some, outcome = pairs(30), (np.arange(30) % 4 > 0).astype(float)
    weights, trust = np.linspace(0.2, 3.0, 30), (0.1, 0.9)
    groupings = {"odd": [str(i % 2) for i in range(30)], "third": [str(i % 3) for i in range(30)]}
    name, best, evidence = fit_best_grouping(some, outcome, groupings, weights=weights, trust=trust)
    expected = {
        key: fit_arbiter(some.regrouped(group), outcome, weights=weights, trust=trust).evidence
        for key, group in {"": None, **groupings}.items()
    }
    assert evidence == expected and name == max(expected, key=lambda key: expected[key])
    assert best.evidence == expected[name]


def test_selection_weights_by_hand() -> None:
    pool = np.arange(8.0)  # quarters: 0 1, 2 3, 4 5, 6 7
    # three of four asked pairs are in the first quarter: 1/4 to 3/4, and 1/4 to 1/4; their mean is 1/2
    assert selection_weights(np.array([0.0, 0.0, 1.0, 2.0]), pool) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    assert selection_weights(np.array([0.0, 0.0, 1.0, 7.0]), pool) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    # halves with bins=2: 1/2 to 3/4, and 1/2 to 1/4
    assert selection_weights(np.array([0.0, 3.0, 1.0, 7.0]), pool, bins=2) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    many = np.array([0.0] * 19 + [7.0])  # 5/19 to 5, which is capped at 4, or both at 2
    assert selection_weights(many, pool)[[0, -1]] == pytest.approx(np.array([5 / 19, 4.0]) / (9 / 20))
    assert selection_weights(many, pool, cap=2.0)[[0, -1]] == pytest.approx(np.array([0.5, 2.0]) / (11.5 / 20))
    assert selection_weights(np.array([3.0]), pool).tolist() == [1.0]
    assert selection_weights(np.zeros(0), pool).shape == (0,)


def test_a_quarter_of_the_pool_may_be_empty() -> None:
    pool = np.array([0.0] * 4 + [5.0] * 4)  # no value above the last edge, 5
    found = selection_weights(np.array([0.0, 9.0]), pool)
    assert found == pytest.approx(np.array([1.0, 0.25]) / 0.625)


def test_the_next_label_is_the_one_that_shrinks_the_pools_variance_most() -> None:
    candidates, pool, covariance = pairs(9, seed=1), pairs(15, seed=2), COVARIANCE
    left, expected = list(range(9)), []
    for _ in range(9):

        def after(i: int, covariance: np.ndarray = covariance) -> np.ndarray:
            x = features_of(candidates, i)
            p = 1 / (1 + math.exp(-x @ MEAN))
            return np.linalg.inv(np.linalg.inv(covariance) + p * (1 - p) * np.outer(x, x))

        def variance(i: int) -> float:
            return sum(float(features_of(pool, k) @ after(i) @ features_of(pool, k)) for k in range(15))

        best = min(left, key=variance)
        expected.append(best)
        left.remove(best)
        covariance = after(best)
    assert most_informative(POSTERIOR, candidates, pool, 9) == expected
    assert most_informative(POSTERIOR, candidates, pool, 3) == expected[:3]
    assert sorted(most_informative(POSTERIOR, candidates, pool[np.zeros(15, bool)], 2)) == [0, 1]


@pytest.mark.parametrize("short", ["outcome", "weights", "policy_gap", "group"])
def test_lengths_that_differ_are_refused(short: str) -> None:
    some, outcome, weights = pairs(3), np.zeros(3), np.ones(3)
    if short == "outcome":
        outcome = outcome[:2]
    elif short == "weights":
        weights = weights[:2]
    else:
        cut = {"reward_gap": some.reward_gap, "policy_gap": some.policy_gap, "group": some.group}
        some = Pairs(**{**cut, short: cut[short][:2]})
    with pytest.raises(ValueError, match=r"arbiter: 3 pairs, \d outcomes, \d weights"):
        fit_arbiter(some, outcome, weights=weights)


@pytest.mark.parametrize("where", ["reward_gap", "policy_gap", "outcome", "weights"])
def test_what_is_not_finite_is_refused(where: str) -> None:
    some, outcome, weights = pairs(3), np.zeros(3), np.ones(3)
    {"reward_gap": some.reward_gap, "policy_gap": some.policy_gap, "outcome": outcome, "weights": weights}[where][1] = (
        np.inf
    )
    with pytest.raises(ValueError, match="expected finite gaps, outcomes and weights"):
        fit_arbiter(some, outcome, weights=weights)
