"""The Laplace posterior of a reward model's last layer: against brute force, and as a column of a table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from shfcas.cli import main
from shfcas.data.candidates import CandidateTable, read_candidates
from shfcas.data.preferences import Preference, write_preferences
from shfcas.rewards.laplace import LaplaceScorer, evidence_precision, fit_head_posterior, fit_laplace
from shfcas.rewards.scorers import load_scorer
from shfcas.rewards.table import add_rewards
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_json

FOUND = [("a good film", "a bad ending"), ("the bread was fine", "the hotel was cold"), ("a great day", "a late train")]
PAIRS = [Preference(f"how was it {i}?", *texts) for i, texts in enumerate(FOUND * 3)]


def problem(pairs: int = 40, size: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences, margins and labels-consistent weights."""
    draw = np.random.default_rng(seed)
    weight, differences = draw.normal(size=size), draw.normal(size=(pairs, size))
    signs = np.where(draw.random(pairs) < 1 / (1 + np.exp(-differences @ weight)), 1, -1)
    return differences * signs[:, None], np.abs(draw.normal(size=pairs)) * 0.2, weight


def loss(w: np.ndarray, differences: np.ndarray, margins: np.ndarray, precision: float) -> float:
    return float(np.log1p(np.exp(margins - differences @ w)).sum() + precision / 2 * w @ w)


def test_the_covariance_is_the_inverse_of_a_numerical_hessian() -> None:
    differences, margins, weight = problem()
    posterior = fit_head_posterior(weight, [(differences[:7], margins[:7]), (differences[7:], margins[7:])], 0.8)
    step, size = 1e-4, len(weight)
    hessian = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            for a in (1, -1):
                for b in (1, -1):
                    at = weight + step * (a * np.eye(size)[i] + b * np.eye(size)[j])
                    hessian[i, j] += a * b * loss(at, differences, margins, 0.8) / (4 * step**2)
    covariance = np.linalg.inv(hessian)
    answers = np.random.default_rng(1).normal(size=(7, size))
    found = posterior.variances(answers.astype(np.float32), [3, 1, 3])
    for rows, variances in zip((answers[:3], answers[3:4], answers[4:]), found, strict=True):
        centred = rows - rows.mean(axis=0)
        np.testing.assert_allclose(variances, np.einsum("ij,jk,ik->i", centred, covariance, centred), rtol=1e-4)
    assert found[1] == [0.0] and posterior.pairs == 40


def test_variances_are_those_of_the_posterior_by_importance_sampling() -> None:
    differences, margins, _ = problem(60, 3)
    weight = minimize(loss, np.zeros(3), (differences, margins, 1.0)).x  # the mode, where the approximation is meant
    posterior = fit_head_posterior(weight, [(differences, margins)], 1.0)
    covariance = posterior.directions @ np.diag(posterior.variance) @ posterior.directions.T
    proposal = multivariate_normal(weight, 1.5 * covariance, seed=0)
    draws = proposal.rvs(50_000)
    logs = -np.log1p(np.exp(margins - draws @ differences.T)).sum(axis=1) - 0.5 * (draws**2).sum(axis=1)
    shares = np.exp(logs - proposal.logpdf(draws))
    shares /= shares.sum()
    answers = np.random.default_rng(2).normal(size=(4, 3))
    rewards = draws @ (answers - answers.mean(axis=0)).T
    spread = shares @ (rewards - shares @ rewards) ** 2
    np.testing.assert_allclose(posterior.variances(answers, [4])[0], spread, rtol=0.15)


def test_the_prior_precision_has_the_highest_evidence() -> None:
    differences, margins, weight = problem(30, 5)
    posterior = fit_head_posterior(weight, [(differences, margins)])
    q = 1 / (1 + np.exp(margins - differences @ weight))
    curvature = (differences * (q * (1 - q))[:, None]).T @ differences

    def evidence(precision: float) -> float:
        prior = multivariate_normal(np.zeros(5), np.eye(5) / precision).logpdf(weight)
        return prior - 0.5 * np.linalg.slogdet(curvature + precision * np.eye(5))[1]

    grid = np.geomspace(0.01, 100, 2001)
    assert posterior.prior_precision == pytest.approx(grid[np.argmax([evidence(p) for p in grid])], rel=0.01)
    assert evidence_precision(np.zeros(5), 1.0) < 1e-12  # pairs that say nothing about the head


def test_more_pairs_and_familiar_answers_have_less_variance() -> None:
    differences, margins, weight = problem(400)
    differences[:, 3] = 0  # a direction that no pair is about
    few = fit_head_posterior(weight, [(differences[:20], margins[:20])], 1.0)
    many = fit_head_posterior(weight, [(differences, margins)], 1.0)
    familiar, strange = np.eye(4)[[0, 1]], np.eye(4)[[0, 3]]
    assert sum(many.variances(familiar, [2])[0]) < 0.2 * sum(few.variances(familiar, [2])[0])
    assert sum(many.variances(strange, [2])[0]) > 5 * sum(many.variances(familiar, [2])[0])


def test_sampled_heads_have_the_variances() -> None:
    differences, margins, weight = problem()
    posterior = replace(fit_head_posterior(weight, [(differences, margins)], 1.0), members=4000)
    answers, rewards = np.random.default_rng(1).normal(size=(5, 4)), [[1.0, -2.0, 0.5], [3.0, 3.0]]
    members = posterior.member_rewards(rewards, answers, [3, 2])
    variances = posterior.variances(answers, [3, 2])
    for reward, by_member, variance in zip(rewards, members, variances, strict=True):
        assert np.shape(by_member) == (len(reward), 4000)
        np.testing.assert_allclose(np.mean(by_member, axis=1), reward, atol=0.1)
        np.testing.assert_allclose(np.var(by_member, axis=1), variance, rtol=0.1)
        np.testing.assert_allclose(np.mean(by_member, axis=0), np.mean(reward), atol=1e-9)  # only the order varies
    alone = posterior.member_rewards(rewards[1:], answers[3:], [2])
    np.testing.assert_allclose(alone[0], members[1])


@pytest.mark.parametrize(("weight", "pairs"), [(np.ones(4), 0), (np.zeros(4), 40)])
def test_a_head_without_training_is_refused(weight: np.ndarray, pairs: int) -> None:
    differences, margins, _ = problem()
    with pytest.raises(UserError, match=f"expected a trained head and its training pairs, got {pairs} pairs"):
        fit_head_posterior(weight, [(differences[:pairs], margins[:pairs])])


# Reward models


def table() -> CandidateTable:
    texts = [["a good film", "a bad ending", "the phone"], ["a night"], ["the soup was good", "the train was late"]]
    rows = [
        {"prompt_id": str(i), "prompt": "how was it?", "completions": row, "logprobs": [-float(len(a)) for a in row]}
        for i, row in enumerate(texts)
    ]
    return CandidateTable.from_rows(rows)


def test_a_model_gets_variances_and_keeps_its_rewards(reward_model: str) -> None:
    posterior = fit_laplace(reward_model, PAIRS)
    scored = add_rewards(table(), LaplaceScorer(reward_model, posterior))
    assert scored.column("rewards") == add_rewards(table(), load_scorer(reward_model)).column("rewards")
    variances = scored.column("reward_variances")
    assert [len(row) for row in variances] == [3, 1, 2] and "member_rewards" not in scored
    assert variances[1] == [0.0] and min(variances[0]) > 0
    assert variances[2][0] == pytest.approx(variances[2][1])  # two answers are as far from their mean
    assert posterior.pairs == 9 and posterior.prior_precision > 0
    assert "reward_variances" not in add_rewards(scored, load_scorer(reward_model))


def test_features_give_the_rewards(reward_model: str) -> None:
    scorer = LaplaceScorer(reward_model, fit_laplace(reward_model, PAIRS))
    rewards, features = scorer.rewards_and_features(["how?"] * 3, ["a good film", "the soup was fine", "bad"])
    head = scorer.scorer.model.classifier.weight.detach().numpy().ravel()
    linear = features @ head
    np.testing.assert_allclose(np.diff(rewards), np.diff(linear), atol=1e-5)


def test_a_cost_model_is_as_uncertain(reward_model: str) -> None:
    cost, plain = (fit_laplace(reward_model, PAIRS, cost_model) for cost_model in (True, False))
    scored = add_rewards(table(), LaplaceScorer(reward_model, cost, cost_model=True))
    expected = add_rewards(table(), LaplaceScorer(reward_model, plain))
    assert scored.column("reward_variances") == expected.column("reward_variances")
    assert scored.column("rewards") == [[-r for r in row] for row in expected.column("rewards")]


def test_ensembles_and_functions_are_refused(reward_model: str, tmp_path: Path) -> None:
    write_json(tmp_path / "ensemble.json", {"members": [reward_model, reward_model]})
    with pytest.raises(UserError, match=r"expected one reward model, got the ensemble .*; set uncertainty to none"):
        fit_laplace(str(tmp_path), PAIRS)
    with pytest.raises(UserError, match=r"expected a reward model, got the function tests\.support"):
        fit_laplace("tests.support.tiny:letter_reward", PAIRS)


def test_the_command_adds_the_column_that_strategies_read(
    reward_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(table().table, "candidates.parquet")
    write_preferences("pairs.jsonl", PAIRS)
    score = ["score", "--reward_model", reward_model, "--uncertainty", "laplace"]
    assert main(score) == 2
    assert "uncertainty: laplace needs reward_model and preferences" in capsys.readouterr().err
    assert main([*score, "--preferences", "pairs.jsonl"]) == 0
    scored = read_candidates("conflicts.parquet")
    expected = add_rewards(table(), LaplaceScorer(reward_model, fit_laplace(reward_model, PAIRS)))
    assert scored.column("reward_variances") == expected.column("reward_variances")
    assert scored.metadata["uncertainty"]["method"] == "laplace" and scored.metadata["uncertainty"]["pairs"] == 9
    for strategy in ("delta_ucb", "drts", "maxmin_lcb", "reward_variance"):
        assert main(["select", "--strategy", strategy, "--budget", "2"]) == 0
        assert len(Path("queue.jsonl").read_text().splitlines()) == 2
    score += ["--preferences", "pairs.jsonl"]
    assert main([*score, "--uncertainty_members", "1"]) == 2
    assert "uncertainty_members: expected 0 or at least 2, got 1" in capsys.readouterr().err
    assert main([*score, "--uncertainty_members", "6", "--output", "members.parquet"]) == 0
    members = read_candidates("members.parquet").column("member_rewards")
    assert [np.shape(row) for row in members] == [(3, 6), (1, 6), (2, 6)]
    assert main(["select", "members.parquet", "--strategy", "bald", "--budget", "2"]) == 0
    # Parts of a folder are not continued with the uncertainty of other pairs.
    assert main([*score, "--output", "parts"]) == 0
    parts: Any = pq.read_table("parts").to_pylist()
    assert [row["reward_variances"] for row in parts] == scored.column("reward_variances")
    write_preferences("pairs.jsonl", PAIRS[:6])
    capsys.readouterr()
    assert main([*score, "--output", "parts"]) == 1
    assert "parts was made with other inputs or settings" in capsys.readouterr().err
    lines = "".join(json.dumps(row) + "\n" for row in pa.table(table().table).to_pylist())
    monkeypatch.setattr("sys.stdin", iter(lines.splitlines(keepends=True)))
    assert main([*score, "-"]) == 0
    assert all("reward_variances" in json.loads(line) for line in capsys.readouterr().out.splitlines())
