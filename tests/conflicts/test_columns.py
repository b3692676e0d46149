"""Conflict columns of a candidate table, against the slow reference and by hand."""

import math

import pytest
import torch

from shfcas.conflicts.columns import POLICY_SCORES, add_conflicts, policy_scores
from shfcas.ops import reference
from shfcas.utils.errors import UserError
from tests.support.conflict_rows import random_rows, table


def test_two_answers_that_disagree_by_hand() -> None:
    made = add_conflicts(table({"rewards": [0.0, 1.0], "logprobs": [-1.0, -5.0]}))
    assert made.column("pacs") == [pytest.approx([-2.0, 2.0])]
    assert made.column("kendall_distance") == [1.0]
    assert made.column("kendall_tau_b") == [-1.0]
    assert made.column("mean_abs_pacs") == [pytest.approx(2.0)]
    assert made.column("degenerate") == [False]


@pytest.mark.parametrize("policy_score", POLICY_SCORES)
def test_ragged_rows_equal_the_reference_row_by_row(policy_score: str) -> None:
    made = add_conflicts(table(*random_rows([8, 2, 5, 1, 13])), policy_score)
    for row in made.rows():
        contrast = [(a + b) / 2 for a, b in zip(row["contrast_a"], row["contrast_b"], strict=True)]
        score = {
            "logprob": row["logprobs"],
            "mean_logprob": [p / n for p, n in zip(row["logprobs"], row["num_tokens"], strict=True)],
            "logprob_ratio": [p - q for p, q in zip(row["logprobs"], row["reference_logprobs"], strict=True)],
            "contrast": contrast,
            "mean_contrast": [c / n for c, n in zip(contrast, row["num_tokens"], strict=True)],
        }[policy_score]
        rewards, scores = (torch.tensor(v, dtype=torch.float64) for v in (row["rewards"], score))
        expected = reference.conflict_scores(rewards, scores)
        assert row["pacs"] == pytest.approx(expected.pacs.tolist(), abs=1e-12)
        for name in ("kendall_distance", "kendall_tau_b", "mean_abs_pacs", "degenerate"):
            assert row[name] == pytest.approx(getattr(expected, name).item(), nan_ok=True), name


def test_the_three_policy_scores_by_hand() -> None:
    made = table({"logprobs": [-6.0, -4.0], "num_tokens": [3, 1], "reference_logprobs": [-8.0, -1.0]})
    assert policy_scores(made.batch(), "logprob").values.tolist() == [-6.0, -4.0]
    assert policy_scores(made.batch(), "mean_logprob").values.tolist() == [-2.0, -4.0]
    assert policy_scores(made.batch(), "logprob_ratio").values.tolist() == [2.0, -3.0]


def test_a_contrast_is_the_mean_over_all_principles_by_hand() -> None:
    made = table({"contrast_x": [1.0, 3.0], "contrast_y": [2.0, -9.0], "num_tokens": [3, 2], "logprobs": [0.0, 0.0]})
    assert policy_scores(made.batch(), "contrast").values.tolist() == [1.5, -3.0]
    assert policy_scores(made.batch(), "mean_contrast").values.tolist() == [0.5, -1.5]
    with pytest.raises(UserError, match=r"no column contrast_\*; shfcas score --principles"):
        policy_scores(table({"logprobs": [0.0, 1.0]}).batch(), "contrast")


def test_an_answer_without_tokens_has_a_mean() -> None:
    made = table({"logprobs": [0.0, -4.0], "num_tokens": [0, 2]})
    assert policy_scores(made.batch(), "mean_logprob").values.tolist() == [0.0, -2.0]


def test_the_policy_score_is_recorded_and_a_second_run_replaces_the_first() -> None:
    first = add_conflicts(table(*random_rows([4])))
    second = add_conflicts(first, "logprob_ratio")
    assert first.metadata == {"policy": "tiny", "policy_score": "logprob"}
    assert second.metadata["policy_score"] == "logprob_ratio"
    assert second.column("pacs") != first.column("pacs")
    assert second.table.column_names == first.table.column_names


@pytest.mark.parametrize(
    "row",
    [
        {"rewards": [2.0, 2.0, 2.0], "logprobs": [-1.0, -2.0, -3.0]},
        {"rewards": [1.0, 2.0, 3.0], "logprobs": [-5.0, -5.0, -5.0]},
        {"rewards": [1.0], "logprobs": [-1.0]},
    ],
    ids=["equal rewards", "equal log-probabilities", "one answer"],
)
def test_rows_that_cannot_disagree_are_degenerate_and_harm_no_other(row: dict) -> None:
    sound = {"rewards": [0.0, 1.0], "logprobs": [-1.0, -5.0]}
    made = add_conflicts(table(sound, row, sound))
    assert made.column("degenerate") == [False, True, False]
    assert made.column("pacs")[0] == made.column("pacs")[2] == pytest.approx([-2.0, 2.0])
    assert all(map(math.isfinite, made.column("pacs")[1]))


def test_a_value_that_is_no_number_harms_its_own_row_alone() -> None:
    sound = {"rewards": [0.0, 1.0], "logprobs": [-1.0, -5.0]}
    made = add_conflicts(table(sound, {"rewards": [0.0, math.nan], "logprobs": [-1.0, -5.0]}, sound))
    assert all(map(math.isnan, made.column("pacs")[1]))
    assert math.isnan(made.column("kendall_distance")[1])
    assert made.column("kendall_distance")[::2] == [1.0, 1.0]


def test_what_is_missing_is_named() -> None:
    unscored = table({"logprobs": [-1.0, -2.0]})
    with pytest.raises(UserError, match="no column rewards; shfcas score --reward_model MODEL adds it"):
        add_conflicts(unscored)
    with pytest.raises(UserError, match="no column reference_logprobs; shfcas sample --reference MODEL adds it"):
        add_conflicts(unscored.with_columns(rewards=[[1.0, 2.0]]), "logprob_ratio")
    with pytest.raises(UserError, match="unknown policy_score 'probs', one of logprob, mean_logprob, logprob_ratio"):
        policy_scores(unscored.batch(), "probs")
