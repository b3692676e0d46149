"""Sequential labelling: the expected gain of a batch against simulation, and when sessions stop."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, zscore

from shfcas.rewards.arbiter import Arbiter, Pairs, fit_arbiter
from shfcas.selection.auto import AUDIT, Step, beliefs, expected_gain, next_step

ANSWERS = 6
FIRSTS, SECONDS = np.triu_indices(ANSWERS, 1)
NOTHING = Pairs(np.zeros(0), np.zeros(0), np.zeros(0, str))


def made(prompts: int, seed: int, proxy: float, policy: float, blind: int) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """All pairs of some prompts in 6 topics, which answer is better, and their prompts.

    The proxy has this correlation with the truth, and its negative in the blind topics.
    """
    rng = np.random.default_rng(seed)
    topic = rng.integers(6, size=prompts)
    truth, noise, other = rng.normal(size=(3, prompts, ANSWERS))
    knows = np.where(topic < blind, -proxy, proxy)[:, None]
    reward = zscore(knows * truth + np.sqrt(1 - proxy**2) * noise, axis=1)
    score = zscore(policy * truth + np.sqrt(1 - policy**2) * other, axis=1)
    gap, policy_gap, gold = (v[:, FIRSTS] - v[:, SECONDS] for v in (reward, score, truth))
    pairs = Pairs(gap.ravel(), policy_gap.ravel(), np.repeat(topic.astype(str), len(FIRSTS)))
    return pairs, (gold > 0).ravel().astype(float), np.arange(prompts).repeat(len(FIRSTS))


def session(seed: int, blind: int, tolerance: float = 0.005) -> tuple[list[Step], list[int], float, float]:
    """Asks until it stops; the steps, what was asked, and the accuracy then and with the whole budget of 80."""
    pool, labels, prompts = made(40, seed, 0.8, 0.35, blind)
    test, gold, _ = made(100, seed + 1000, 0.8, 0.35, blind)
    rng = np.random.default_rng(seed)
    sample = pool[rng.choice(len(pool), 200, replace=False)]
    asked: list[int] = []
    steps = []
    while True:
        rest = np.setdiff1d(np.arange(len(pool)), asked)
        known = (pool[np.array(asked, int)], labels[asked])
        where = prompts[rest].astype(str).tolist()
        settings = {"batch": 8, "left": 80 - len(asked), "prompts": where, "tolerance": tolerance}
        steps.append(next_step(*known, sample, pool[rest], **settings))
        if steps[-1].action == "stop":
            break
        asked += (rest[steps[-1].chosen] if steps[-1].chosen else rng.choice(rest, 8, replace=False)).tolist()
    whole = [*asked, *rng.choice(rest, 80 - len(asked), replace=False)]
    fits = [fit_arbiter(pool[at], labels[at]) for at in (asked, whole)]
    accuracy = [float(((fit.probability(test) > 0.5) == gold).mean()) for fit in fits]
    return steps, asked, *accuracy


def test_a_sound_proxy_stops_early_and_a_blind_one_goes_on() -> None:
    sound, blind = ([session(seed, topics) for seed in range(8)] for topics in (0, 2))
    asked = [np.array([len(s[1]) for s in sessions]) for sessions in (sound, blind)]
    assert asked[0].mean() <= 20 and asked[1].mean() >= 24  # of 80
    for sessions in (sound, blind):  # and what was not asked would have added little
        assert np.mean([whole - now for *_, now, whole in sessions]) < 0.01
    for steps, comparisons, *_ in (*sound, *blind):
        assert [s.action for s in steps].index("audit") == 0 and steps[-1].action == "stop"
        assert steps[-1].not_asked == 80 - len(comparisons) > 0
        assert len(set(comparisons)) == len(comparisons)
    # A blind proxy is less trusted than the arbiter; a sound one is as good.
    assert np.mean([s[0][-1].accuracy["arbiter"] - s[0][-1].accuracy["reward model"] for s in blind]) > 0.05
    assert np.mean([s[0][-1].accuracy["arbiter"] - s[0][-1].accuracy["reward model"] for s in sound]) < 0.02


def test_a_smaller_tolerance_asks_more() -> None:
    counts = [sum(len(session(seed, 2, tolerance)[1]) for seed in range(3)) for tolerance in (0.03, 0.003)]
    assert counts[0] < counts[1]


# The expected gain


def posterior() -> tuple[Arbiter, Pairs, Pairs]:
    pool, labels, _ = made(20, 0, 0.5, 0.3, 2)
    at = np.random.default_rng(1).choice(len(pool), 12, replace=False)
    arbiter = fit_arbiter(pool[at], labels[at], spread=0.7, groups=sorted(set(pool.group)))
    return arbiter, pool, pool[np.arange(0, 300, 9)]


def shrunk(arbiter: Arbiter, asked: Pairs) -> np.ndarray:
    x = arbiter.features(asked)
    q = 1 / (1 + np.exp(-x @ arbiter.mean))
    return np.linalg.inv(np.linalg.inv(arbiter.covariance) + (x * (q * (1 - q))[:, None]).T @ x)


def test_the_gain_is_that_of_sampled_posteriors() -> None:
    arbiter, pool, asked = posterior()
    after = shrunk(arbiter, asked)
    rng = np.random.default_rng(0)
    later = rng.multivariate_normal(arbiter.mean, arbiter.covariance - after, 20_000)
    x = arbiter.features(pool)
    noise = 8 / np.pi

    def right(means: np.ndarray, covariance: np.ndarray) -> float:
        p = norm.cdf(means @ x.T / np.sqrt(noise + np.einsum("ij,jk,ik->i", x, covariance, x)))
        return float(np.maximum(p, 1 - p).mean())

    expected = right(later, after) - right(arbiter.mean, arbiter.covariance)
    assert expected_gain(arbiter, pool, after) == pytest.approx(expected, abs=5e-4) and expected > 0.01


def test_the_gain_is_that_of_labels_from_the_model() -> None:
    arbiter, pool, asked = posterior()
    x, design = arbiter.features(pool), arbiter.features(asked)
    precision = np.linalg.inv(arbiter.covariance)
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(400):
        truth = rng.multivariate_normal(arbiter.mean, arbiter.covariance)
        outcome = rng.random(len(design)) < 1 / (1 + np.exp(-design @ truth))
        mean = arbiter.mean
        for _ in range(25):
            q = 1 / (1 + np.exp(-design @ mean))
            slope = design.T @ (q - outcome) + precision @ (mean - arbiter.mean)
            mean = mean - np.linalg.solve((design * (q * (1 - q))[:, None]).T @ design + precision, slope)
        p = 1 / (1 + np.exp(-x @ truth))
        before, after = (np.where(x @ m > 0, p, 1 - p).mean() for m in (arbiter.mean, mean))
        gains.append(after - before)
    error = np.std(gains) / 20
    assert expected_gain(arbiter, pool, shrunk(arbiter, asked)) == pytest.approx(np.mean(gains), abs=3 * error + 0.005)


def test_no_news_is_no_gain_and_more_news_is_more() -> None:
    arbiter, pool, asked = posterior()
    assert expected_gain(arbiter, pool, arbiter.covariance) == pytest.approx(0, abs=1e-6)
    found = [expected_gain(arbiter, pool, shrunk(arbiter, asked[np.arange(n)])) for n in (1, 5, 15, 34)]
    assert 0 < found[0] < found[1] < found[2] < found[3]
    sure = replace(arbiter, mean=arbiter.mean * 100)  # nothing can change a verdict
    assert expected_gain(sure, pool, shrunk(arbiter, asked)) < found[0]


# Decisions


def test_spreads_are_averaged_by_evidence() -> None:
    pool, labels, _ = made(40, 3, 0.9, 0.3, 3)
    few, many = np.arange(0, 600, 75), np.arange(0, 600, 3)
    for at in (few, many):
        found = beliefs(pool[at], labels[at], pool)
        assert sum(share for share, _ in found) == pytest.approx(1)
        assert found[0][1].groups == () and found[1][1].groups == tuple(sorted(set(pool.group)))
    shares = [beliefs(pool[at], labels[at], pool)[0][0] for at in (few, many)]
    assert shares[0] > 0.02 and shares[1] < 1e-3  # that all topics are alike is not ruled out by a few labels
    assert len(beliefs(pool[few].regrouped(None), labels[few], pool.regrouped(None))) == 1


def test_an_audit_comes_first_and_a_spent_budget_ends_it() -> None:
    pool, labels, _ = made(20, 4, 0.8, 0.3, 2)
    first = next_step(NOTHING, np.zeros(0), pool, pool, batch=8, left=40)
    assert (first.action, first.chosen, first.not_asked) == ("audit", [], 40)
    assert first.text() == "0 labels: too few to judge by; ask about random pairs"
    at = np.arange(0, 300, 20)
    last = next_step(pool[at], labels[at], pool, pool, batch=8, left=0)
    assert (last.action, last.not_asked) == ("stop", 0) and "the budget is spent; 0 labels not asked" in last.text()
    assert next_step(NOTHING, np.zeros(0), pool, NOTHING, batch=8, left=40).action == "stop"  # nothing left to ask


def test_a_step_says_what_it_believes() -> None:
    pool, labels, prompts = made(40, 5, 0.8, 0.3, 2)
    at = np.arange(0, 600, 60)
    settings = {"batch": 8, "left": 30, "prompts": prompts.astype(str).tolist()}
    step = next_step(pool[at], labels[at], pool, pool, **settings)
    assert step.action == "conflict" and len(set(prompts[step.chosen])) == 8 and step.labels == 10 >= AUDIT
    assert step.gains["conflict"] > step.gains["random"] > 0
    assert "expected accuracy: arbiter 0." in step.text() and "ask about the chosen pairs" in step.text()
    enough = next_step(pool[at], labels[at], pool, pool, tolerance=0.5, **settings)
    assert enough.action == "stop" and enough.text().endswith("stop, less than 0.5; 30 labels not asked for")
    # With one trust in the policy to learn and pairs alike, chosen ones are no better than random ones.
    alike = Pairs(np.zeros(200), np.tile([1.0, -1.0], 100), np.full(200, ""))
    heads = np.arange(10) % 2 == 0
    assert next_step(alike[np.arange(10)], heads, alike, alike, batch=8, left=80, tolerance=0).action == "random"
