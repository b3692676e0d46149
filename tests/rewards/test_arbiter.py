"""The arbiter: its posterior against independent implementations, and what it is for on made-up sources."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from shfcas.rewards.arbiter import (
    PRIOR_SD,
    SPREAD,
    Pairs,
    fit_arbiter,
    fit_best_grouping,
    most_informative,
    prior_arbiter,
    selection_weights,
)


def made_pairs(count: int, seed: int, trust: dict[str, float], policy: float) -> tuple[Pairs, np.ndarray]:
    """Pairs whose labels follow the model with these trusts in the reward model, by group, and in the policy."""
    rng = np.random.default_rng(seed)
    group = rng.choice(list(trust), count)
    reward, score = rng.normal(size=(2, count)) * 1.4
    logits = np.array([trust[g] for g in group]) * reward + policy * score
    return Pairs(reward, score, group), (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(float)


def test_without_labels_both_sources_count_alike() -> None:
    pairs = Pairs(np.array([1.0, -2.0, 0.0]), np.array([1.0, 2.0, 3.0]), np.array(["a", "a", "b"]))
    arbiter = fit_arbiter(Pairs(np.zeros(0), np.zeros(0), np.zeros(0, str)), np.zeros(0))
    assert arbiter.labels == 0
    np.testing.assert_array_equal(arbiter.mean, prior_arbiter().mean)
    first, second, third = arbiter.probability(pairs)
    assert first > 0.5 and second == 0.5 and third > 0.5


def test_the_trust_in_a_group_is_below_0_where_labels_contradict_the_reward_model() -> None:
    pairs, outcome = made_pairs(80, 3, {"right": 1.5, "wrong": -1.5}, 0.0)
    arbiter = fit_arbiter(pairs, outcome)
    right, wrong, other = arbiter.reward_trust(["right", "wrong", "never seen"])
    assert wrong < 0 < right and other == arbiter.mean[0]
    rows = {row["group"]: row["trust"] for row in arbiter.trust() if row["source"] == "reward model"}
    assert (rows["right"], rows["wrong"], rows[""]) == pytest.approx((right, wrong, other))
    alone = fit_arbiter(*made_pairs(80, 3, {"all": -1.5}, 0.0))
    assert alone.reward_trust(["all"]) == alone.mean[0] < 0


def test_the_mode_is_that_of_scipy_and_scikit_learn() -> None:
    pairs, outcome = made_pairs(60, 0, {"a": 1.0}, 0.3)
    arbiter = fit_arbiter(pairs, outcome)
    features = np.stack([pairs.reward_gap, pairs.policy_gap], axis=1)

    def loss(at: np.ndarray) -> float:
        logits = features @ at
        return float((np.logaddexp(0, logits) - outcome * logits).sum() + 0.5 * ((at - 0.5) ** 2).sum() / PRIOR_SD**2)

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000})
    np.testing.assert_allclose(arbiter.mean, found.x, atol=1e-6)
    # With many labels the prior does not matter.
    pairs, outcome = made_pairs(20_000, 1, {"a": 1.0}, 0.3)
    plain = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    plain.fit(np.stack([pairs.reward_gap, pairs.policy_gap], axis=1), outcome)
    np.testing.assert_allclose(fit_arbiter(pairs, outcome).mean, plain.coef_[0], atol=2e-3)


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_evidence_and_covariance_are_those_of_numerical_integration(spread: float) -> None:
    pairs, outcome = made_pairs(12, 2, {"a": 0.8, "b": -0.5} if spread else {"a": 0.8}, 0.4)
    arbiter = fit_arbiter(pairs, outcome, spread=spread)
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(400_000, len(arbiter.mean)))
    scale = np.array([PRIOR_SD, PRIOR_SD, *[spread] * len(arbiter.groups)])
    at = draws * scale + np.array([0.5, 0.5, *[0.0] * len(arbiter.groups)])
    logits = at @ arbiter.features(pairs).T
    likelihood = np.exp((outcome * logits - np.logaddexp(0, logits)).sum(axis=1))
    assert arbiter.evidence == pytest.approx(np.log(likelihood.mean()), abs=0.15)
    mean = (at * likelihood[:, None]).sum(axis=0) / likelihood.sum()
    deviation = np.sqrt(((at - mean) ** 2 * likelihood[:, None]).sum(axis=0) / likelihood.sum())
    np.testing.assert_allclose(np.sqrt(np.diag(arbiter.covariance)), deviation, rtol=0.12)


def test_weights_count_like_repeated_labels() -> None:
    pairs, outcome = made_pairs(30, 3, {"a": 1.0, "b": -1.0}, 0.2)
    weights = np.array([1, 2, 3] * 10)
    repeated = np.repeat(np.arange(30), weights)
    twice = Pairs(pairs.reward_gap[repeated], pairs.policy_gap[repeated], pairs.group[repeated])
    one = fit_arbiter(pairs, outcome, weights=weights, spread=0.7)
    other = fit_arbiter(twice, outcome[repeated], spread=0.7)
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-8)
    np.testing.assert_allclose(one.covariance, other.covariance, atol=1e-8)


def test_swapping_the_two_completions_changes_nothing() -> None:
    pairs, outcome = made_pairs(40, 4, {"a": 1.0, "b": -1.0}, 0.5)
    swapped = Pairs(-pairs.reward_gap, -pairs.policy_gap, pairs.group)
    one, other = fit_arbiter(pairs, outcome), fit_arbiter(swapped, 1 - outcome)
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-9)
    np.testing.assert_allclose(one.probability(pairs), 1 - other.probability(swapped), atol=1e-9)


def test_a_group_where_the_reward_model_is_wrong_is_found() -> None:
    pairs, outcome = made_pairs(200, 5, {"sound": 1.5, "blind": -1.5}, 0.5)
    arbiter = fit_arbiter(pairs, outcome)
    assert arbiter.spread == SPREAD
    trust = {row["group"]: row for row in arbiter.trust() if row["source"] == "reward model"}
    assert trust["blind"]["high"] < 0 < trust["sound"]["low"]


def test_the_grouping_that_explains_the_labels_is_chosen() -> None:
    pairs, outcome = made_pairs(150, 6, {"sound": 1.5, "blind": -1.5}, 0.3)
    rng = np.random.default_rng(0)
    name, arbiter, evidence = fit_best_grouping(
        pairs, outcome, {"topic": pairs.group, "nonsense": rng.choice(["x", "y", "z"], len(pairs))}
    )
    assert name == "topic" and arbiter.groups == ("blind", "sound")
    assert [*evidence] == ["", "topic", "nonsense"] and evidence["topic"] == arbiter.evidence > evidence[""]
    alike, outcome = made_pairs(150, 7, {"a": 1.0}, 0.3)
    assert fit_best_grouping(alike, outcome, {"nonsense": rng.choice(["x", "y"], len(alike))})[1].spread == 0


def test_intervals_cover_the_truth() -> None:
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)  # truths drawn from the prior, as coverage of a Bayesian interval needs
        reward, policy = 0.5 + PRIOR_SD * rng.normal(size=2)
        row = fit_arbiter(*made_pairs(40, seed, {"a": reward}, policy)).trust()[0]
        inside += row["low"] <= reward <= row["high"]
    assert abs(inside - 190) <= 3 * np.sqrt(200 * 0.95 * 0.05)


def test_a_probability_is_the_average_over_the_posterior() -> None:
    pairs, outcome = made_pairs(15, 8, {"a": 1.0}, 0.5)
    arbiter = fit_arbiter(pairs, outcome)
    logits = arbiter.features(pairs) @ arbiter.mean
    deviation = np.sqrt(np.einsum("ij,jk,ik->i", arbiter.features(pairs), arbiter.covariance, arbiter.features(pairs)))
    nodes = norm.ppf((np.arange(4000) + 0.5) / 4000)
    exact = (1 / (1 + np.exp(-(logits[:, None] + deviation[:, None] * nodes)))).mean(axis=1)
    np.testing.assert_allclose(arbiter.probability(pairs), exact, atol=0.02)


def test_a_group_without_labels_is_less_certain() -> None:
    pairs, outcome = made_pairs(100, 9, {"sound": 1.5, "blind": -1.5}, 0.5)
    arbiter = fit_arbiter(pairs, outcome)
    two = Pairs(np.full(2, 2.0), np.zeros(2), np.array(["never seen", "sound"]))
    unseen, sound = arbiter.probability(two)
    assert abs(unseen - 0.5) < abs(sound - 0.5)


def test_selection_weights_restore_the_pool() -> None:
    rng = np.random.default_rng(0)
    pool = rng.normal(size=5000)
    asked = np.sort(pool)[-2000:][rng.permutation(2000)[:400]]
    asked = np.concatenate([asked, rng.choice(pool, 400)])
    weights = selection_weights(asked, pool, cap=100)
    assert weights.mean() == pytest.approx(1)
    assert np.average(asked, weights=weights) == pytest.approx(pool.mean(), abs=0.1)
    assert asked.mean() > 0.3
    capped = selection_weights(asked, pool, cap=1.0)
    np.testing.assert_array_equal(capped, np.ones(len(asked)))
    assert len(selection_weights(np.zeros(0), pool)) == 0


def test_the_most_informative_pairs_shrink_the_variance_as_predicted() -> None:
    candidates, _ = made_pairs(80, 10, {"a": 1.0, "b": -0.5}, 0.3)
    arbiter = fit_arbiter(*made_pairs(20, 11, {"a": 1.0, "b": -0.5}, 0.3), spread=0.7)
    pool, _ = made_pairs(300, 12, {"a": 1.0, "b": -0.5}, 0.3)

    def variance(chosen: list[int]) -> float:
        features = arbiter.features(candidates)[chosen]
        p = 1 / (1 + np.exp(-features @ arbiter.mean))
        after = np.linalg.inv(np.linalg.inv(arbiter.covariance) + (features * (p * (1 - p))[:, None]).T @ features)
        target = arbiter.features(pool)
        return float(np.einsum("ij,jk,ik->i", target, after, target).mean())

    chosen = most_informative(arbiter, candidates, pool, 8)
    assert len(set(chosen)) == 8
    # Greedy: each step is the best single addition, by brute force.
    for step in range(8):
        best = min(set(range(80)) - set(chosen[:step]), key=lambda i: variance([*chosen[:step], i]))
        assert variance([*chosen[:step], best]) == pytest.approx(variance(chosen[: step + 1]), rel=1e-9)
    rng = np.random.default_rng(0)
    assert variance(chosen) < np.mean([variance(rng.permutation(80)[:8].tolist()) for _ in range(50)])
    assert len(most_informative(arbiter, candidates, pool, 500)) == 80


@pytest.mark.parametrize(
    ("outcome", "weights", "message"),
    [
        (np.zeros(3), None, "4 pairs, 3 outcomes"),
        (np.zeros(4), np.ones(5), "5 weights"),
        (np.array([0, 1, np.nan, 1]), None, "finite"),
    ],
)
def test_bad_input_is_refused(outcome: np.ndarray, weights: np.ndarray | None, message: str) -> None:
    pairs = Pairs(np.ones(4), np.ones(4), np.full(4, "a"))
    with pytest.raises(ValueError, match=message):
        fit_arbiter(pairs, outcome, weights=weights)


def test_labels_that_all_agree_stay_finite() -> None:
    pairs = Pairs(np.full(500, 5.0), np.full(500, -5.0), np.full(500, "a"))
    arbiter = fit_arbiter(pairs, np.ones(500))
    assert np.isfinite(arbiter.mean).all() and np.isfinite(arbiter.evidence)
    assert arbiter.mean[0] > 0.5 > arbiter.mean[1]
