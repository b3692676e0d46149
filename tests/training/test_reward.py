"""Reward models: they learn what pairs say, and what is saved scores as what was trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from shfcas.data.preferences import Preference
from shfcas.rewards.metrics import pair_accuracy
from shfcas.rewards.scorers import ModelScorer, load_scorer
from shfcas.training.lora import AdapterConfig
from shfcas.training.reward import member
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.data import encode_pairs
from shfcas.training.reward.train import train_reward_model
from shfcas.utils.errors import UserError
from tests.support import tiny
from tests.support.reward_pairs import FAST, HELD_OUT, TRAIN, Kill


def scores(scorer: Any) -> list[float]:
    return scorer([p.prompt for p in HELD_OUT] * 2, [p.chosen for p in HELD_OUT] + [p.rejected for p in HELD_OUT])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[ModelScorer]:
    """The models as they are in memory when they are saved."""
    kept: list[ModelScorer] = []
    save = member.save_model

    def keeping(output: Path, model: Any, tokenizer: Any) -> None:
        kept.append(ModelScorer(model, tokenizer))
        save(output, model, tokenizer)

    monkeypatch.setattr(member, "save_model", keeping)
    return kept


@pytest.mark.parametrize("kind", ["reward_model", "policy with LoRA"])
def test_it_learns_and_is_saved_as_it_is(
    kind: str, tiny_models: dict[str, str], tmp_path: Path, trained: list[ModelScorer]
) -> None:
    lora = kind == "policy with LoRA"
    settings = RewardModelConfig(**FAST, lora=AdapterConfig(r=8 if lora else 0))
    model = tiny_models["policy" if lora else "reward_model"]
    output = tmp_path / "out"
    result = train_reward_model(
        model, TRAIN, settings=settings, output=output, work_dir=tmp_path / "work", seed=0, held_out=HELD_OUT
    )
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


def test_the_seed_decides(tiny_models: dict[str, str], tmp_path: Path) -> None:
    settings = RewardModelConfig(num_train_epochs=1, batch_size=16, learning_rate=1e-3)
    found = []
    for run, seed in enumerate((0, 0, 1)):
        output = tmp_path / f"out{run}"
        # A fresh head and the order of the pairs both follow the seed, whatever was drawn before.
        torch.rand(run + 1)
        train_reward_model(
            tiny_models["policy"],
            TRAIN[:32],
            settings=settings,
            output=output,
            work_dir=tmp_path / f"work{run}",
            seed=seed,
        )
        found.append(scores(load_scorer(str(output))))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_pairs_that_are_too_long_are_counted(
    tiny_models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = Preference("how was it?", "good " * 200, "bad")
    settings = RewardModelConfig(num_train_epochs=1, batch_size=8, too_long="floor")
    result = train_reward_model(
        tiny_models["reward_model"],
        [*TRAIN[:8], long],
        settings=settings,
        output=tmp_path / "out",
        work_dir=tmp_path / "work",
        seed=0,
        held_out=[long],
    )
    assert (result["pairs"], result["pairs_too_long"]) == (8, 1)
    assert result["held_out_accuracy"] is None
    assert "1 of 9 pairs are longer than 128 tokens" in caplog.text
    with pytest.raises(UserError, match=r"none of 1 preference pairs can be .*: 1 are longer than max_length 128"):
        train_reward_model(
            tiny_models["reward_model"],
            [long],
            settings=settings,
            output=tmp_path / "no",
            work_dir=tmp_path / "work",
            seed=0,
        )
    assert not (tmp_path / "no").exists()


def test_without_preferences_there_is_nothing_to_train_on(tiny_models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no preferences"):
        train_reward_model(
            tiny_models["reward_model"],
            [],
            settings=RewardModelConfig(),
            output=tmp_path / "out",
            work_dir=tmp_path / "work",
            seed=0,
        )


def test_pairs_are_encoded_as_they_are_scored() -> None:
    tokenizer = tiny.reward_tokenizer()
    plain = Preference("how was it?", "a good film", "bad")
    (row,), used = encode_pairs([plain], tokenizer, 128)
    assert used == [plain] and set(row) == {"chosen_ids", "rejected_ids"}
    assert tokenizer.decode(row["chosen_ids"]).startswith("[CLS] how was")
    assert row["chosen_ids"] == tokenizer("how was it?", "a good film")["input_ids"]


def test_a_report_says_what_was_learned(tiny_models: dict[str, str], tmp_path: Path) -> None:
    held_out = [*HELD_OUT[:8], *(replace(p, source="gold", round=1) for p in HELD_OUT[8:20])]
    settings = RewardModelConfig(**FAST, eval_steps=0.25)
    result = train_reward_model(
        tiny_models["reward_model"],
        TRAIN,
        settings=settings,
        output=tmp_path / "out",
        work_dir=tmp_path / "work",
        seed=0,
        held_out=held_out,
    )
    before, after = result["before"], result["held_out"]
    assert before["accuracy"]["mean"] < 0.8 < after["accuracy"]["mean"] and before["loss"] > after["loss"]
    assert {k: v["count"] for k, v in after["by_source"].items()} == {"gold": 12, "original": 8}
    assert {k: v["count"] for k, v in after["by_round"].items()} == {"0": 8, "1": 12}
    scorer = load_scorer(str(tmp_path / "out"))
    assert pair_accuracy(scorer, held_out[:8]) == after["by_source"]["original"]["mean"]
    curve = result["held_out_loss"]
    assert len(curve) == 4 and curve[-1]["step"] == len(result["loss"])
    assert curve[-1]["loss"] == pytest.approx(after["loss"], abs=1e-5)  # the trainer's own, and ours
    assert result["train"]["accuracy"]["count"] == result["pairs"] == len(TRAIN)


def test_too_long_pairs_are_counted_by_source(tiny_models: dict[str, str], tmp_path: Path) -> None:
    long = Preference("how was it?", "good " * 200, "bad", source="human")
    settings = RewardModelConfig(num_train_epochs=1, batch_size=8)
    result = train_reward_model(
        tiny_models["reward_model"],
        [*TRAIN[:8], long, long],
        settings=settings,
        output=tmp_path / "out",
        work_dir=tmp_path / "work",
        seed=0,
        held_out=[long],
    )
    assert (result["pairs_too_long_by_source"], result["held_out_too_long"]) == ({"human": 2}, 1)
    assert result["pairs_by_source"] == {"original": 8, "human": 2}  # cut, not left out


OVERFIT = {"num_train_epochs": 6, "batch_size": 8, "learning_rate": 5e-3, "weight_decay": 0.0, "eval_steps": 2}


@pytest.mark.parametrize("lora", [0, 4])
def test_early_stopping_keeps_the_best_model(lora: int, tiny_models: dict[str, str], tmp_path: Path) -> None:
    # What is held out contradicts what is learned, so the held-out loss is best at once and grows.
    contrary = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in TRAIN[:16]]
    settings = RewardModelConfig(**OVERFIT, early_stopping_patience=2, lora=AdapterConfig(r=lora))
    model = tiny_models["policy" if lora else "reward_model"]
    result = train_reward_model(
        model,
        TRAIN[:32],
        settings=settings,
        output=tmp_path / "out",
        work_dir=tmp_path / "work",
        seed=0,
        held_out=contrary,
    )
    losses = [row["loss"] for row in result["held_out_loss"]]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 1 + 2  # two that were no better, and no more
    assert result["best_step"] == result["held_out_loss"][best]["step"]
    assert result["held_out"]["loss"] == pytest.approx(losses[best], abs=1e-4) and losses[best] < losses[-1] - 0.01
    scorer = load_scorer(str(tmp_path / "out"))
    assert pair_accuracy(scorer, contrary) == result["held_out_accuracy"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_training_that_was_killed_ends_as_one_that_was_not(
    at: int, tiny_models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrary = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in TRAIN[:16]]
    settings = RewardModelConfig(**OVERFIT, early_stopping_patience=2)

    def run(name: str) -> dict[str, Any]:
        return train_reward_model(
            tiny_models["reward_model"],
            TRAIN[:32],
            settings=settings,
            output=tmp_path / name,
            work_dir=tmp_path / f"{name}.work",
            seed=0,
            held_out=contrary,
        )

    unbroken = run("unbroken")
    save, saves = transformers.Trainer._save_checkpoint, []

    def killed(self: Any, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        saves.append(self.state.global_step)
        if len(saves) == at:
            raise Kill

    monkeypatch.setattr(transformers.Trainer, "_save_checkpoint", killed)
    with pytest.raises(Kill):
        run("broken")
    assert run("broken") == unbroken
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "broken")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_beginnings_of_another_training_are_refused(tiny_models: dict[str, str], tmp_path: Path) -> None:
    settings = RewardModelConfig(num_train_epochs=1, batch_size=8, checkpoint_steps=1)
    train_reward_model(
        tiny_models["reward_model"],
        TRAIN[:16],
        settings=settings,
        output=tmp_path / "a",
        work_dir=tmp_path / "work",
        seed=0,
    )
    with pytest.raises(UserError, match="holds checkpoints of another training"):
        train_reward_model(
            tiny_models["reward_model"],
            TRAIN[:24],
            settings=settings,
            output=tmp_path / "b",
            work_dir=tmp_path / "work",
            seed=0,
        )
    assert not (tmp_path / "b").exists()


def test_overfitting_and_divergence_are_said(
    tiny_models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contrary = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in TRAIN[:16]]
    settings = RewardModelConfig(**OVERFIT)
    train_reward_model(
        tiny_models["reward_model"],
        TRAIN[:16],
        settings=settings,
        output=tmp_path / "a",
        work_dir=tmp_path / "wa",
        seed=0,
        held_out=contrary,
    )
    assert "the held-out loss was lowest at step 2" in caplog.text
    wild = RewardModelConfig(num_train_epochs=4, batch_size=4, learning_rate=1e30)
    with pytest.raises(UserError, match="training diverged; lower the learning rate"):
        train_reward_model(
            tiny_models["reward_model"],
            TRAIN[:16],
            settings=wild,
            output=tmp_path / "b",
            work_dir=tmp_path / "wb",
            seed=0,
        )


def test_early_stopping_without_held_out_pairs_trains_to_the_end(
    tiny_models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RewardModelConfig(num_train_epochs=1, batch_size=8, early_stopping_patience=1)
    result = train_reward_model(
        tiny_models["reward_model"],
        TRAIN[:16],
        settings=settings,
        output=tmp_path / "a",
        work_dir=tmp_path / "w",
        seed=0,
    )
    assert "nothing can say when to stop early" in caplog.text and len(result["loss"]) == 2
