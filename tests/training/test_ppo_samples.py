"""Completions that are written down, and what trackers get to see."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset

from shfcas.training.ppo.samples import track_samples
from shfcas.training.ppo.trainer import PPOTrainer
from tests.support.ppo_tiny import Crash, CrashAt, config, lora, prompts, share_of, tiny_model, tiny_tokenizer


def trainer(folder: Path, **changes: object) -> PPOTrainer:
    extra = {n: changes.pop(n) for n in ("callbacks", "train_dataset", "reward_funcs") if n in changes}
    return PPOTrainer(
        tiny_model(),
        config(folder, **{"log_completions": True, "num_rollouts": 3} | changes),
        train_dataset=extra.pop("train_dataset", prompts()),
        processing_class=tiny_tokenizer(),
        reward_funcs=extra.pop("reward_funcs", share_of("w7")),
        peft_config=lora(),
        **extra,
    )


def samples(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "completions").iterdir())
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def none_for_short_prompts(prompts: list[str], **columns: object) -> list[float | None]:
    return [None if len(prompt) < 4 else 1.0 for prompt in prompts]


def test_every_answer_is_written_with_its_score(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, reward_funcs=[share_of("w7"), none_for_short_prompts], missing_eos_penalty=0.5)
    ppo.train()
    rows = samples(tmp_path)
    logged = [row for row in ppo.state.log_history if "rollout" in row]
    assert [row["rollout"] for row in rows] == [k for k in range(3) for _ in range(8)]
    for rollout, row in enumerate(logged):
        part = rows[8 * rollout : 8 * rollout + 8]
        assert sorted(r["prompt"] for r in part) == sorted(prompts()["prompt"])
        assert sum(r["score"] for r in part) / 8 == pytest.approx(row["objective/scores"])
        assert sum(r["kl"] for r in part) / 8 == pytest.approx(row["objective/kl"], abs=1e-6)
        for r in part:
            words = r["completion"].split()
            assert r["rewards/share"] == pytest.approx(words.count("w7") / max(1, len(words)))
            assert (r["rewards/none_for_short_prompts"] is None) == (len(r["prompt"]) < 4)
            expected = r["rewards/share"] + (r["rewards/none_for_short_prompts"] or 0) - 0.5 * (not r["finished"])
            assert r["score"] == pytest.approx(expected, abs=1e-6)
            assert len(words) <= r["num_tokens"] <= 6


def test_a_resumed_run_writes_nothing_twice(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").train()
    with pytest.raises(Crash):  # in the third rollout, whose answers are written already
        trainer(tmp_path / "broken", save_rollouts=1, callbacks=[CrashAt(2 * 4 + 1)]).train()
    assert len(samples(tmp_path / "broken")) == 24
    trainer(tmp_path / "broken", save_rollouts=1).train(resume_from_checkpoint=True)
    assert samples(tmp_path / "broken") == samples(tmp_path / "whole")


def test_off_by_default(tmp_path: Path) -> None:
    trainer(tmp_path, log_completions=False).train()
    assert not (tmp_path / "completions").exists()


def test_the_rollout_that_stops_a_run_is_written_too(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, max_kl=1e-6, learning_rate=1e-1, kl_coef=0.0)
    ppo.train()
    assert ppo.stopped_by_kl and samples(tmp_path)[-1]["rollout"] == ppo.rollout


def fake_tracker(monkeypatch: pytest.MonkeyPatch, name: str) -> list[dict[str, Any]]:
    """A module with the two names that are used of wandb and trackio."""
    module, logged = ModuleType(name), []
    module.Table = lambda dataframe: dataframe
    module.log = logged.append
    monkeypatch.setitem(sys.modules, name, module)
    return logged


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_table_for_trackers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the call is tried; what the tracker makes of the table is its own affair."""
    logged = fake_tracker(monkeypatch, name)
    messages = [{"role": "user", "content": "w1"}]
    rows = [{"rollout": 0, "prompt": messages, "completion": "w2", "score": 1.0, "kl": 0.5}]
    track_samples(["tensorboard", name], rows)
    (entry,) = logged
    assert entry["completions"].to_dict("records") == [rows[0] | {"prompt": "user: w1"}]


def test_conversations(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": f"w{i}"}] for i in range(8)]
    dataset = Dataset.from_dict({"prompt": messages})
    ppo = trainer(tmp_path, train_dataset=dataset, num_rollouts=1, reward_funcs=lambda prompts, **columns: [0.0] * 8)
    ppo.train()
    assert all(row["prompt"] in messages and row["completion"][0]["role"] == "assistant" for row in samples(tmp_path))


def test_tensorboard(tmp_path: Path) -> None:
    """The event files hold every metric of every rollout."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ppo = trainer(tmp_path, report_to="tensorboard", eval_rollouts=0)
    ppo.train()
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    rows = [row for row in ppo.state.log_history if "rollout" in row]
    for name in ("objective/kl", "objective/scores", "policy/clipfrac_avg", "val/ratio_var", "lr", "episode"):
        assert [e.value for e in events.Scalars(f"train/{name}")] == pytest.approx([row[name] for row in rows])
    assert [e.step for e in events.Scalars("train/objective/kl")] == [row["step"] for row in rows]
