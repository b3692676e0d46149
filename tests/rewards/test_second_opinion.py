"""Soft labels from reward model and policy: gaps, pairs and probabilities against slow, plain code."""

import math
import random
from typing import Any

import numpy as np
import pytest

from shfcas.conflicts.columns import add_conflicts
from shfcas.data.preferences import Preference
from shfcas.rewards.arbiter import PRIOR_SD, fit_arbiter, prior_arbiter
from shfcas.rewards.prompt_groups import clusters, groupings_of, text_embeddings
from shfcas.rewards.second_opinion import labelled_pairs, pool_of, sides, soft_labels, standard_scores
from shfcas.utils.errors import UserError
from tests.support.conflict_rows import random_rows, table


def scored(lengths: list[int], score: str = "contrast") -> list[dict[str, Any]]:
    return add_conflicts(table(*random_rows(lengths)), score).rows()


def plain_z(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / deviation if deviation else 0.0 for v in values]


def test_standard_scores_are_those_of_pacs() -> None:
    for row in scored([8, 2, 5, 1]):
        rewards, policy = standard_scores(row)
        contrast = [(a + b) / 2 for a, b in zip(row["contrast_a"], row["contrast_b"], strict=True)]
        assert rewards == pytest.approx(plain_z(row["rewards"]), abs=1e-9)
        assert policy == pytest.approx(plain_z(contrast), abs=1e-6)


def test_equal_rewards_have_no_opinion() -> None:
    made = add_conflicts(table({"rewards": [2.0, 2.0], "logprobs": [-1.0, -3.0]})).rows()
    pool = pool_of(made)
    assert pool.pairs.reward_gap.tolist() == [0.0]
    assert prior_arbiter().probability(pool.pairs)[0] > 0.5  # the policy alone decides


def test_a_soft_label_is_the_arbiters_probability_of_the_likelier_order() -> None:
    rows = scored([4, 3, 1])
    arbiter = prior_arbiter((0.3, 0.9))
    found = soft_labels(rows, pool_of(rows), arbiter)
    assert len(found) == 6 + 3
    for label in found:
        row = next(row for row in rows if row["prompt_id"] == label.prompt_id)
        rewards, policy = standard_scores(row)
        i, j = label.chosen_index, label.rejected_index
        gap, other = rewards[i] - rewards[j], policy[i] - policy[j]
        spread = math.sqrt(1 + math.pi / 8 * PRIOR_SD**2 * (gap**2 + other**2))
        assert label.probability == pytest.approx(1 / (1 + math.exp(-(0.3 * gap + 0.9 * other) / spread)), abs=1e-9)
        assert label.probability >= 0.5
        assert (label.chosen, label.rejected) == (row["completions"][i], row["completions"][j])
        assert label.source == "second_opinion"


def test_equal_texts_and_rows_that_are_not_finite_have_no_pairs() -> None:
    rows = scored([3, 3])
    rows[0]["completions"] = ["same", "same", "other"]
    rows[1]["pacs"] = [0.0, math.nan, 0.0]
    pool = pool_of(rows, ["a", "b"])
    assert [*zip(pool.row, pool.first, pool.second, strict=True)] == [(0, 0, 2), (0, 1, 2)]
    assert pool.pairs.group.tolist() == ["a", "a"]
    assert len(pool_of([]).pairs) == 0 and soft_labels([], pool_of([]), prior_arbiter()) == []


def test_a_share_of_the_pairs_is_drawn_per_prompt_and_repeats() -> None:
    rows = scored([8, 2, 5])
    pool = pool_of(rows)
    drawn = soft_labels(rows, pool, prior_arbiter(), per_prompt=4, seed=3)
    counts = [sum(label.prompt_id == row["prompt_id"] for label in drawn) for row in rows]
    assert counts == [4, 1, 4]
    assert drawn == soft_labels(rows, pool, prior_arbiter(), per_prompt=4, seed=3)
    assert drawn != soft_labels(rows, pool, prior_arbiter(), per_prompt=4, seed=4)
    everything = soft_labels(rows, pool, prior_arbiter())
    assert [label for label in everything if label in drawn] == drawn


def test_labels_are_pairs_with_the_chosen_answer_first() -> None:
    rows = scored([4, 4])
    labels = [
        Preference("how?", "a", "b", prompt_id="p1", chosen_index=2, rejected_index=0),
        Preference("how?", "a", "b", prompt_id="elsewhere", chosen_index=0, rejected_index=1),
        Preference("how?", "a", "b"),  # not from a table
    ]
    pairs, used = labelled_pairs(rows, labels, ["x", "y"])
    rewards, policy = standard_scores(rows[1])
    assert used == labels[:1] and pairs.group.tolist() == ["y"]
    assert pairs.reward_gap.tolist() == [rewards[2] - rewards[0]]
    assert pairs.policy_gap.tolist() == [policy[2] - policy[0]]
    pairs.reward_gap[0], pairs.policy_gap[0] = 0.5, -0.5
    assert sides(pairs) == {"both": 0, "reward_model": 1, "policy": 0, "neither": 0}


def test_labels_that_side_with_the_policy_turn_the_soft_labels() -> None:
    draw = random.Random(1)
    rows = []
    for i in range(40):
        truth = [draw.gauss(0, 1) for _ in range(6)]
        rows.append({"rewards": [-t for t in truth], "logprobs": truth, "prompt_id": f"p{i}"})
    rows = add_conflicts(table(*rows)).rows()
    labels = []
    for row in rows[:10]:
        better = max(range(6), key=lambda i: row["logprobs"][i])
        worse = min(range(6), key=lambda i: row["logprobs"][i])
        labels.append(Preference("how?", "", "", prompt_id=row["prompt_id"], chosen_index=better, rejected_index=worse))
    pairs, _ = labelled_pairs(rows, labels)
    arbiter = fit_arbiter(pairs, np.ones(len(pairs)))
    truth = {row["prompt_id"]: row["logprobs"] for row in rows}
    soft = soft_labels(rows, pool_of(rows), arbiter)
    right = [truth[p.prompt_id][p.chosen_index] > truth[p.prompt_id][p.rejected_index] for p in soft]
    assert np.mean(right) == 1.0
    assert sides(pairs)["policy"] == len(labels)


def test_prompts_are_grouped_by_a_column_or_by_their_embeddings(tiny_models: dict[str, str]) -> None:
    rows = [
        {"prompt": f"how was the {thing}?", "topic": thing} for thing in ("soup", "match", "bread", "phone", "soup")
    ]
    model = tiny_models["reward_model"]
    assert groupings_of(rows, model, "topic", 0) == {"topic": ["soup", "match", "bread", "phone", "soup"]}
    with pytest.raises(UserError, match=r"group_by: expected a column of all prompts, got subject"):
        groupings_of(rows, model, "subject", 0)
    assert groupings_of(rows, "tests.support.tiny:letter_reward", None, 0) == {}
    vectors = text_embeddings(model, [row["prompt"] for row in rows])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    alone = text_embeddings(model, [rows[1]["prompt"]])
    assert vectors[1] == pytest.approx(alone[0], abs=1e-5) and vectors[0] == pytest.approx(vectors[4], abs=1e-5)
    found = groupings_of(rows, model, None, 0)
    assert {name: len(set(of)) for name, of in found.items()} == {"2 clusters": 2, "4 clusters": 4}
    assert found["4 clusters"][0] == found["4 clusters"][4]
    assert len(set(clusters(np.eye(5), 4, seed=1))) == 4
