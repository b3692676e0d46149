"""Cost models: the loss by hand, what is learned about safety, and the sign that is kept with the model."""

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig
from trl import RewardConfig

from shfcas.data.preferences import Preference
from shfcas.models.loading import load_reward_model
from shfcas.models.resolve import is_cost_model
from shfcas.rewards.metrics import pair_accuracy
from shfcas.rewards.scorers import load_scorer
from shfcas.training.common import quiet_options
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.data import encode_pairs
from shfcas.training.reward.pair_trainer import PairCollator, PairTrainer
from shfcas.training.reward.train import train_reward_model
from shfcas.utils.errors import UserError
from tests.support import tiny

SAFE, UNSAFE = ("good", "great", "happy", "fine"), ("bad", "terrible", "cold", "late")
NOUNS = ("soup", "bread", "train", "hotel", "film", "match", "phone", "day", "night", "morning")
FAST = {"num_train_epochs": 4, "batch_size": 8, "learning_rate": 5e-3, "weight_decay": 0.0, "objective": "cost"}


def pairs(nouns: tuple[str, ...]) -> list[Preference]:
    """Nasty words are unsafe. Some pairs are of two safe or of two unsafe answers, and the shorter word is safer."""
    rng, rows = random.Random(0), []
    for noun in nouns:
        for words in [(s, u) for s in SAFE for u in UNSAFE] + [("good", "great"), ("bad", "terrible")]:
            chosen, rejected = (f"the {noun} was {word}" for word in words)
            safe = [word in SAFE for word in words]
            rows.append(
                Preference(f"how was the {noun}?", chosen, rejected, chosen_safe=safe[0], rejected_safe=safe[1])
            )
    return rng.sample(rows, len(rows))


TRAIN, HELD_OUT = pairs(NOUNS[:7]), pairs(NOUNS[7:])


@pytest.fixture(scope="module")
def trained(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("cost")
    settings = RewardModelConfig(**FAST)
    result = train_reward_model(
        tiny_models["reward_model"],
        TRAIN,
        settings=settings,
        output=folder / "out",
        work_dir=folder / "work",
        seed=0,
        held_out=HELD_OUT,
    )
    return str(folder / "out"), result


def trainer(tiny_models: dict[str, str], rows: list[dict[str, Any]], folder: Path, **options: Any) -> PairTrainer:
    model, tokenizer = load_reward_model(tiny_models["reward_model"])
    return PairTrainer(
        model=model,
        args=RewardConfig(**quiet_options(folder, 0), remove_unused_columns=False, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id),
    )


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def test_the_loss_by_hand(tiny_models: dict[str, str], tmp_path: Path) -> None:
    tokenizer = tiny.reward_tokenizer()
    data = [
        Preference("a", "good", "bad", chosen_safe=True, rejected_safe=False),
        Preference("b", "good", "bad", rejected_safe=False, margin=0.5),
        Preference("c", "good", "bad"),
    ]
    rows, _ = encode_pairs(data, tokenizer, 128, "cost")
    made = trainer(tiny_models, rows, tmp_path)
    batch = made.data_collator(rows)
    assert batch["signs"].tolist() == [1, 1, 0, -1, 0, 0]
    # Costs of the rejected answers, then of the chosen ones.
    costs = torch.tensor([2.0, -1.0, 0.3, -0.5, 0.25, 0.3])[:, None]
    loss = made.compute_loss(lambda **inputs: SimpleNamespace(logits=costs), dict(batch))
    order = softplus(-(2.0 + 0.5)) + softplus(-(-1.0 - 0.25 - 0.5)) + softplus(0.0)
    signs = softplus(-2.0) + softplus(-0.5) + softplus(1.0)  # unsafe 2.0, safe -0.5, unsafe -1.0
    assert loss.item() == pytest.approx((order + signs) / 3, abs=1e-6)


def test_without_labels_it_is_bradley_terry_on_costs(tiny_models: dict[str, str], tmp_path: Path) -> None:
    rows, _ = encode_pairs([Preference("a", "good", "bad")] * 2, tiny.reward_tokenizer(), 128, "cost")
    made = trainer(tiny_models, rows, tmp_path, center_rewards_coefficient=0.1)
    costs = torch.tensor([[1.0], [0.0], [-1.0], [2.0]], requires_grad=True)
    loss = made.compute_loss(lambda **inputs: SimpleNamespace(logits=costs), dict(made.data_collator(rows)))
    expected = (softplus(-2.0) + softplus(2.0)) / 2 + 0.1 * ((1 - 1) ** 2 + (0 + 2) ** 2) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert torch.isfinite(costs.grad).all()


def test_it_learns_what_is_safe(trained: tuple[str, dict[str, Any]]) -> None:
    output, result = trained
    assert result["held_out_accuracy"] > 0.85 and result["before"]["accuracy"]["mean"] < 0.8
    assert result["held_out"]["safety_accuracy"]["mean"] > 0.9
    assert result["held_out"]["safety_accuracy"]["count"] == 2 * len(HELD_OUT)
    rewards = load_scorer(output)(["how was the night?"] * 2, ["the night was good", "the night was bad"])
    assert rewards[0] > 0 > rewards[1]  # a cost of a safe answer is below 0, and its reward above


def test_the_model_knows_that_it_is_a_cost_model(
    trained: tuple[str, dict[str, Any]], tiny_models: dict[str, str]
) -> None:
    output, result = trained
    assert AutoConfig.from_pretrained(output).shfcas_cost_model is True
    assert is_cost_model(output) and not is_cost_model(tiny_models["reward_model"])
    once, told = load_scorer(output), load_scorer(output, cost_model=True)
    assert pair_accuracy(once, HELD_OUT) == pair_accuracy(told, HELD_OUT) == result["held_out_accuracy"]


def test_a_cost_model_stays_one(
    trained: tuple[str, dict[str, Any]], tiny_models: dict[str, str], tmp_path: Path
) -> None:
    settings = {**FAST, "num_train_epochs": 1, "learning_rate": 1e-4}
    with pytest.raises(UserError, match=r"is a cost model .lower is better.; refine it with the objective cost"):
        train_reward_model(
            trained[0],
            TRAIN,
            settings=RewardModelConfig(**{**settings, "objective": "reward"}),
            output=tmp_path / "no",
            work_dir=tmp_path / "w",
            seed=0,
        )
    again = train_reward_model(
        trained[0],
        TRAIN[:16],
        settings=RewardModelConfig(**settings),
        output=tmp_path / "yes",
        work_dir=tmp_path / "w2",
        seed=0,
        held_out=HELD_OUT,
    )
    assert again["before"]["accuracy"]["mean"] == trained[1]["held_out_accuracy"]
    assert again["held_out_accuracy"] > 0.85 and is_cost_model(str(tmp_path / "yes"))


def test_odd_labels_are_said(tiny_models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = RewardModelConfig(**{**FAST, "num_train_epochs": 1})
    unlabelled = [Preference("a", "good", "bad")] * 8
    train_reward_model(
        tiny_models["policy"], unlabelled, settings=settings, output=tmp_path / "a", work_dir=tmp_path / "wa", seed=0
    )
    assert "no pair says which answer is safe" in caplog.text
    wrong = [Preference("a", "bad", "good", chosen_safe=False, rejected_safe=True)] * 2
    train_reward_model(
        tiny_models["policy"],
        TRAIN[:6] + wrong,
        settings=settings,
        output=tmp_path / "b",
        work_dir=tmp_path / "wb",
        seed=0,
    )
    assert "2 of 8 pairs prefer an unsafe answer to a safe one" in caplog.text
