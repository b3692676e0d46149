"""Supervised fine-tuning: the loss falls, only answers count, and what is saved is what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shfcas.errors import UserError
from shfcas.models import load_policy
from shfcas.training import sft
from shfcas.training.lora import LoraSettings
from shfcas.training.sft import SFTSettings, read_demonstrations, train_sft
from tests import tiny


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save_policy(tmp_path_factory.mktemp("policy"))


def demonstrations(chat: bool = True) -> list[dict]:
    return [{"prompt": row["prompt"], "completion": "a good day"} for row in tiny.prompts(16, chat=chat)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The first batch of the trainer, and the model as it is in memory when it is saved."""
    found: dict[str, Any] = {}
    train, save = sft.train, sft.save_model

    def looking(trainer: Any, *arguments: Any) -> Any:
        found["batch"] = next(iter(trainer.get_train_dataloader()))
        return train(trainer, *arguments)

    def keeping(output: Path, model: Any, tokenizer: Any) -> None:
        found["model"] = model
        save(output, model, tokenizer)

    monkeypatch.setattr(sft, "train", looking)
    monkeypatch.setattr(sft, "save_model", keeping)
    return found


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("chat", [True, False])
def test_the_loss_falls_and_the_model_is_saved_as_it_is(
    chat: bool, rank: int, policy: str, tmp_path: Path, seen: dict[str, Any]
) -> None:
    settings = SFTSettings(num_train_epochs=4, batch_size=4, learning_rate=1e-2, lora=LoraSettings(r=rank, dropout=0.0))
    history = train_sft(policy, demonstrations(chat), settings, tmp_path / "out", tmp_path / "work", 0)
    losses = [row["loss"] for row in history]
    assert len(losses) == 16
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])

    _, tokenizer = load_policy(policy)
    batch = seen["batch"]
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = ids[labels != -100]
        assert torch.equal(labels[labels != -100], learned)
        # The answer and its end token, nothing of the prompt: "how was" stands in every prompt.
        assert tokenizer.decode(learned).strip() == "a good day<|end|>"
        assert "how was" in tokenizer.decode(ids)

    reloaded, _ = load_policy(str(tmp_path / "out"))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(reloaded(ids).logits, seen["model"].eval()(ids).logits)
        assert not torch.allclose(reloaded(ids).logits, load_policy(policy)[0](ids).logits)
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_the_same_seed_gives_the_same_policy(policy: str, tmp_path: Path) -> None:
    settings = SFTSettings(num_train_epochs=1, batch_size=4)
    ids = torch.arange(40)[None]
    logits = []
    for run, seed in enumerate((0, 0, 1)):
        torch.rand(run + 1)
        train_sft(policy, demonstrations(), settings, tmp_path / f"out{run}", tmp_path / f"work{run}", seed)
        with torch.no_grad():
            logits.append(load_policy(str(tmp_path / f"out{run}"))[0](ids).logits)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("chat", [True, False])
def test_a_demonstration_that_is_too_long_is_an_error(chat: bool, policy: str, tmp_path: Path) -> None:
    rows = [*demonstrations(chat), {**demonstrations(chat)[0], "completion": "a good day " * 20}]
    with pytest.raises(UserError, match=r"demonstration 16 has \d+ tokens, more than sft.max_length 60"):
        train_sft(policy, rows, SFTSettings(max_length=60), tmp_path / "out", tmp_path / "work", 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "row 1 has no completion"),
        ({"prompt": "a", "completion": " "}, "row 1 has no completion"),
        ({"completion": "b"}, "row 1: a prompt is text"),
        ({"prompt": "", "completion": "b"}, "row 1: the prompt is empty"),
    ],
)
def test_a_bad_demonstration_is_named(row: dict, message: str, tmp_path: Path) -> None:
    path = tiny.write_lines(tmp_path / "demonstrations.jsonl", [{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(UserError, match=f"demonstrations.jsonl: {message}"):
        read_demonstrations(path)


def test_demonstrations_are_read_as_they_are(tmp_path: Path) -> None:
    path = tiny.write_lines(tmp_path / "demonstrations.jsonl", demonstrations())
    assert read_demonstrations(path) == json.loads(json.dumps(demonstrations()))
    with pytest.raises(UserError, match="no demonstrations"):
        read_demonstrations(tiny.write_lines(tmp_path / "empty.jsonl", []))
