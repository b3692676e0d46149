"""Rows of the reward model's trainer: soft labels beside hard ones, and pairs that are too long."""

import pytest

from shfcas.data.preferences import Preference
from shfcas.training.reward.data import encode_pairs, held_out_prompts
from tests.support import tiny

LONG = "the soup was good and " * 40


def test_a_pair_that_is_too_long_is_left_out_and_those_after_it_stay() -> None:
    pairs = [
        Preference("q", "good", "bad"),
        Preference("q", LONG, "bad"),
        Preference("q", "a", LONG),
        Preference("r", "b", "c"),
    ]
    rows, used = encode_pairs(pairs, tiny.policy_tokenizer(), 40, too_long="floor")
    assert used == [pairs[0], pairs[3]] and len(rows) == 2
    alone = encode_pairs([pairs[3]], tiny.policy_tokenizer(), 40)[0]
    assert rows[1] == alone[0]


@pytest.mark.parametrize("objective", ["reward", "cost"])
def test_a_hard_label_beside_soft_ones_is_certain(objective: str) -> None:
    pairs = [Preference("q", "good", "bad", probability=0.75), Preference("q", "good", "late")]
    rows, _ = encode_pairs(pairs, tiny.policy_tokenizer(), 100, objective)
    assert [row["probability"] for row in rows] == [0.75, 1.0]
    (hard,), _ = encode_pairs(pairs[1:], tiny.policy_tokenizer(), 100, objective)
    assert "probability" not in hard


def test_the_two_answers_are_encoded_each() -> None:
    rows, _ = encode_pairs([Preference("q", "good", "bad")], tiny.policy_tokenizer(), 100)
    tokenizer = tiny.policy_tokenizer()
    chosen, rejected = (tokenizer.decode(rows[0][name]) for name in ("chosen_ids", "rejected_ids"))
    assert "good" in chosen and "bad" in rejected and "bad" not in chosen


def test_pairs_with_soft_labels_are_not_held_out() -> None:
    pairs = [Preference(f"q{k}", "good", "bad", probability=0.6) for k in range(4)]
    hard = [Preference(f"r{k}", "good", "bad") for k in range(4)]
    both = held_out_prompts([*pairs, *hard], 0.5, seed=0)
    assert both == held_out_prompts(hard, 0.5, seed=0) and len(both) == 2
