"""Soft labels in the training of reward models: the loss by hand, what is learned, and what is not measured."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig

from shfcas.data.preferences import Preference, read_preferences, write_preferences
from shfcas.models.loading import load_reward_model
from shfcas.rewards.scorers import load_scorer
from shfcas.training.common import quiet_options
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.data import encode_pairs, held_out_prompts, weighted
from shfcas.training.reward.pair_trainer import PairCollator, PairTrainer
from shfcas.training.reward.refine import train_and_held_out, train_on_groups
from shfcas.utils.errors import UserError
from tests.support import tiny


def soft(prompt: str, chosen: str, rejected: str, probability: float) -> Preference:
    return Preference(prompt, chosen, rejected, source="second_opinion", probability=probability)


PAIRS = [
    soft("how was the soup?", "a good day", "bad", 0.5),
    soft("how was the soup?", "great", "terrible", 0.9),
    Preference("how was the soup?", "fine", "cold", margin=0.5),
]


@pytest.mark.parametrize("objective", ["reward", "cost"])
def test_the_loss_by_hand(objective: str, tiny_models: dict[str, str], tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(tiny_models["reward_model"])
    rows, _ = encode_pairs(PAIRS, tokenizer, 64, objective)
    assert [row["probability"] for row in rows] == [0.5, 0.9, 1.0]
    trainer = PairTrainer(
        model,
        args=RewardConfig(max_length=64, remove_unused_columns=False, **quiet_options(tmp_path, 0)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id),
    )
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(model.eval(), dict(batch), True)
    first, second = outputs.logits.squeeze(-1).double().chunk(2)
    expected = []
    for d, p, m in zip((first - second).tolist(), [0.5, 0.9, 1.0], [0.0, 0.0, 0.5], strict=True):
        right = 1 / (1 + math.exp(-(d - m)))
        expected.append(-p * math.log(right) - (1 - p) * math.log(1 - right))
    assert loss.item() == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_without_soft_labels_no_column_is_added(tiny_models: dict[str, str]) -> None:
    _, tokenizer = load_reward_model(tiny_models["reward_model"])
    rows, _ = encode_pairs(PAIRS[2:], tokenizer, 64)
    assert "probability" not in rows[0]


def test_the_model_learns_the_probability(tiny_models: dict[str, str], tmp_path: Path) -> None:
    groups = [[soft("how was the soup?", "a good day", "bad", 0.75)] * 1]
    settings = RewardModelConfig(num_train_epochs=80, learning_rate=5e-3, batch_size=1, held_out=0, weight_decay=0)
    result = train_on_groups(
        tiny_models["reward_model"],
        groups,
        settings=settings,
        output=tmp_path / "model",
        work_dir=tmp_path / "work",
        seed=0,
        split_seed=0,
    )
    scorer = load_scorer(str(tmp_path / "model"))
    good, bad = scorer(prompts=["how was the soup?"] * 2, completions=["a good day", "bad"])
    assert 1 / (1 + math.exp(bad - good)) == pytest.approx(0.75, abs=0.02)
    assert result["train_accuracy"] is None  # a soft label is no verdict


def test_labels_overrule_soft_labels_and_only_they_are_held_out() -> None:
    prompts = [row["prompt"] for row in tiny.prompts(20, chat=False)]
    opinion = [soft(p, "good", "bad", 0.6) for p in prompts] + [soft(p, "good", "cold", 0.6) for p in prompts]
    labels = [Preference(p, "bad", "good", source="human", round=1) for p in prompts[:10]]
    assert held_out_prompts(opinion, 0.5, 0) == set()
    train, held_out = train_and_held_out([opinion, labels], RewardModelConfig(held_out=0.2), split_seed=0)
    assert len(held_out) == 2 and all(p.source == "human" for p in held_out)
    apart = {p.prompt for p in held_out}
    assert not apart & {p.prompt for p in train}  # nor are their soft labels trained on
    kept = {(p.prompt, p.chosen, p.rejected): p.source for p in train}
    for label in labels:
        if label.prompt not in apart:
            assert kept[label.prompt, "bad", "good"] == "human"
            assert (label.prompt, "good", "bad") not in kept
    assert len(weighted([*labels, soft("x", "a", "b", 0.6)], 3)) == 31


def test_a_soft_label_survives_a_file(tmp_path: Path) -> None:
    write_preferences(tmp_path / "soft.jsonl", PAIRS)
    assert read_preferences(tmp_path / "soft.jsonl") == PAIRS


@pytest.mark.parametrize("value", [-0.1, 1.5, "likely", float("nan")])
def test_a_probability_that_is_none(value: Any) -> None:
    with pytest.raises(UserError, match="row 3, probability: expected a probability from 0 to 1"):
        Preference.from_row({"prompt": "p", "chosen": "a", "rejected": "b", "probability": value}, "row 3")
