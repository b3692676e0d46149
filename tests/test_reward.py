"""Reward models: they learn what pairs say, and what is saved scores as what was trained."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shfcas.errors import UserError
from shfcas.preferences import Preference
from shfcas.scoring import ModelScorer, load_scorer, pair_accuracy
from shfcas.training import reward_member as reward_room
from shfcas.training.lora import LoraSettings
from shfcas.training.reward import RewardSettings, train_reward_model
from shfcas.training.reward_data import encode_pairs
from tests import tiny

GOOD, BAD = ("good", "great", "happy", "fine"), ("bad", "terrible", "cold", "late")
NOUNS = ("soup", "bread", "train", "hotel", "film", "match", "phone", "day", "night", "morning")
FAST = {"num_train_epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "weight_decay": 0.0}


def pairs(nouns: tuple[str, ...]) -> list[Preference]:
    """A nice word is better than a nasty one, whatever it is about."""
    rng = random.Random(0)
    rows = [
        Preference(
            [{"role": "user", "content": f"how was the {noun}?"}], f"the {noun} was {good}", f"the {noun} was {bad}"
        )
        for noun in nouns
        for good in GOOD
        for bad in BAD
    ]
    return rng.sample(rows, len(rows))


TRAIN, HELD_OUT = pairs(NOUNS[:7]), pairs(NOUNS[7:])


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny.write_models(tmp_path_factory.mktemp("models"))


def scores(scorer: Any) -> list[float]:
    return scorer([p.prompt for p in HELD_OUT] * 2, [p.chosen for p in HELD_OUT] + [p.rejected for p in HELD_OUT])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[ModelScorer]:
    """The models as they are in memory when they are saved."""
    kept: list[ModelScorer] = []
    save = reward_room.save_model

    def keeping(output: Path, model: Any, tokenizer: Any) -> None:
        kept.append(ModelScorer(model, tokenizer))
        save(output, model, tokenizer)

    monkeypatch.setattr(reward_room, "save_model", keeping)
    return kept


@pytest.mark.parametrize("kind", ["reward_model", "policy with LoRA"])
def test_it_learns_and_is_saved_as_it_is(
    kind: str, names: dict[str, str], tmp_path: Path, trained: list[ModelScorer]
) -> None:
    lora = kind == "policy with LoRA"
    settings = RewardSettings(**FAST, lora=LoraSettings(r=8 if lora else 0))
    model = names["policy" if lora else "reward_model"]
    output = tmp_path / "out"
    result = train_reward_model(model, TRAIN, settings, output, tmp_path / "work", 0, HELD_OUT)
    assert result["held_out_accuracy"] > 0.9 and result["train_accuracy"] > 0.9
    assert result["pairs"] == len(TRAIN) and result["pairs_too_long"] == 0
    losses = result["loss"]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    reloaded = load_scorer(str(output))  # refuses a model without a trained head
    assert scores(reloaded) == scores(trained[0])
    assert pair_accuracy(reloaded, HELD_OUT) == result["held_out_accuracy"]
    weights = load_file(output / "model.safetensors")
    assert not any("lora" in name or "modules_to_save" in name for name in weights)
    if lora:
        assert torch.equal(weights["score.weight"], trained[0].model.score.weight)


def test_the_seed_decides(names: dict[str, str], tmp_path: Path) -> None:
    settings = RewardSettings(num_train_epochs=1, batch_size=16, learning_rate=1e-3)
    found = []
    for run, seed in enumerate((0, 0, 1)):
        output = tmp_path / f"out{run}"
        # A fresh head and the order of the pairs both follow the seed, whatever was drawn before.
        torch.rand(run + 1)
        train_reward_model(names["policy"], TRAIN[:32], settings, output, tmp_path / f"work{run}", seed)
        found.append(scores(load_scorer(str(output))))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_pairs_that_are_too_long_are_counted(
    names: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = Preference("how was it?", "good " * 200, "bad")
    settings = RewardSettings(num_train_epochs=1, batch_size=8)
    result = train_reward_model(
        names["reward_model"], [*TRAIN[:8], long], settings, tmp_path / "out", tmp_path / "work", 0, [long]
    )
    assert (result["pairs"], result["pairs_too_long"]) == (8, 1)
    assert result["held_out_accuracy"] is None
    assert "1 of 9 pairs are longer than 128 tokens" in caplog.text
    with pytest.raises(UserError, match="all 1 preference pairs are longer than max_length 128"):
        train_reward_model(names["reward_model"], [long], settings, tmp_path / "no", tmp_path / "work", 0)
    assert not (tmp_path / "no").exists()


def test_without_preferences_there_is_nothing_to_train_on(names: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no preferences"):
        train_reward_model(names["reward_model"], [], RewardSettings(), tmp_path / "out", tmp_path / "work", 0)


def test_pairs_are_encoded_as_they_are_scored() -> None:
    tokenizer = tiny.reward_tokenizer()
    plain = Preference("how was it?", "a good film", "bad")
    (row,), used = encode_pairs([plain], tokenizer, 128)
    assert used == [plain] and set(row) == {"chosen_ids", "rejected_ids"}
    assert tokenizer.decode(row["chosen_ids"]).startswith("[CLS] how was")
    assert row["chosen_ids"] == tokenizer("how was it?", "a good film")["input_ids"]
    strong = Preference("how was it?", "a good film", "bad", margin=2.0)
    assert encode_pairs([strong], tokenizer, 128)[0][0]["margin"] == 2.0
    assert "margin" not in encode_pairs([strong, plain], tokenizer, 128)[0][0]  # all pairs have one, or none
