import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from shfcas.training.common import latest_checkpoint
from shfcas.training.ppo.checkpoint import STATE_NAME
from shfcas.training.ppo.trainer import PPOTrainer
from tests.support.ppo_tiny import (
    Crash,
    CrashAt,
    config,
    lora,
    prompts,
    share_of,
    tiny_classifier,
    tiny_model,
    tiny_tokenizer,
)

STEPS = 4  # optimizer steps per rollout: 8 prompts, batches of 4, 2 epochs


def trainer(folder: Path, kind: str, crash_at: int | None = None, **changes: object) -> PPOTrainer:
    settings = {"num_rollouts": 5, "save_rollouts": 2, "kl_target": 1.0, "kl_horizon": 2.5, "cost_limit": 0.01}
    return PPOTrainer(
        tiny_model(tie_word_embeddings=kind == "tied"),
        config(folder, **settings | {"normalize_rewards": "critic" in kind} | changes),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=share_of("w7"),
        peft_config=lora() if "lora" in kind else None,
        value_model=tiny_classifier(3) if "critic" in kind else None,
        metric_funcs={"gold": share_of("w8")},
        cost_func=share_of("w9") if "cost" in kind else None,
        callbacks=[CrashAt(crash_at)] if crash_at else None,
    )


def rows(ppo: PPOTrainer) -> list[dict[str, float]]:
    return [row for row in ppo.state.log_history if "rollout" in row]


def assert_same(ppo: PPOTrainer, whole: PPOTrainer) -> None:
    assert rows(ppo) == rows(whole)
    assert [row["rollout"] for row in rows(ppo)] == list(range(5))
    assert ppo.kl_controller.value == whole.kl_controller.value
    assert ppo.reward_moments == whole.reward_moments
    assert (ppo.cost_multiplier is None) == (whole.cost_multiplier is None)
    if ppo.cost_multiplier is not None:
        assert ppo.cost_multiplier.value == whole.cost_multiplier.value != 1.0
    for name, expected in whole.model.state_dict().items():
        assert torch.equal(ppo.model.state_dict()[name], expected), name
    for mine, theirs in zip(
        ppo.optimizer.state_dict()["state"].values(),
        whole.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("kind", ["full", "tied", "lora", "critic", "lora and critic", "lora with cost"])
def test_killed_and_resumed_equals_unbroken(tmp_path: Path, kind: str) -> None:
    whole = trainer(tmp_path / "whole", kind)
    whole.train()
    with pytest.raises(Crash):  # in the middle of the fourth rollout; the second one is saved
        trainer(tmp_path / "broken", kind, crash_at=3 * STEPS + 2).train()
    assert latest_checkpoint(tmp_path / "broken", STATE_NAME) == str(tmp_path / "broken" / f"checkpoint-{2 * STEPS}")
    torch.manual_seed(999)  # a new process starts from another random state
    resumed = trainer(tmp_path / "broken", kind)
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, whole)
    assert latest_checkpoint(tmp_path / "broken", STATE_NAME) == str(tmp_path / "broken" / f"checkpoint-{5 * STEPS}")


def test_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = trainer(tmp_path, "lora", save_rollouts=1)
    whole.train()
    newest = tmp_path / f"checkpoint-{5 * STEPS}"
    (newest / "ppo_state.json").unlink()
    (newest / "optimizer.pt").unlink()
    (tmp_path / f"checkpoint-{4 * STEPS}" / "ppo_state.json").unlink()
    assert latest_checkpoint(tmp_path, STATE_NAME) == str(tmp_path / f"checkpoint-{3 * STEPS}")
    resumed = trainer(tmp_path, "lora", save_rollouts=1)
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, whole)
    assert latest_checkpoint(tmp_path, STATE_NAME) == str(newest)  # rewritten
    with pytest.raises(ValueError, match=r"not a complete PPO checkpoint: it has no ppo_state\.json"):
        (newest / "ppo_state.json").unlink()
        trainer(tmp_path, "lora").train(resume_from_checkpoint=str(newest))


class CrashWhileSaving(PPOTrainer):
    """Dies between the weights and the optimizer state."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if output_dir.endswith(f"-{2 * STEPS}"):
            raise Crash
        super()._save_optimizer_and_scheduler(output_dir)


def test_death_while_saving_leaves_the_one_before(tmp_path: Path) -> None:
    broken = trainer(tmp_path, "lora", save_rollouts=1, save_total_limit=1)
    broken.__class__ = CrashWhileSaving
    with pytest.raises(Crash):
        broken.train()
    assert (tmp_path / f"checkpoint-{2 * STEPS}" / "adapter_model.safetensors").is_file()
    assert latest_checkpoint(tmp_path, STATE_NAME) == str(tmp_path / f"checkpoint-{STEPS}")


def test_old_checkpoints_are_deleted_and_never_mixed_with_new_ones(tmp_path: Path) -> None:
    stale = tmp_path / f"checkpoint-{5 * STEPS}" / "stale.txt"
    stale.parent.mkdir()
    stale.write_text("from an earlier run")
    trainer(tmp_path, "lora", save_rollouts=1, save_total_limit=2).train()
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == [f"checkpoint-{4 * STEPS}", f"checkpoint-{5 * STEPS}"]
    assert not stale.exists()


def test_no_checkpoint_in_the_middle_of_a_rollout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class SaveNow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = state.global_step == STEPS + 1

    ppo = trainer(tmp_path, "lora", save_rollouts=0)
    ppo.add_callback(SaveNow())
    ppo.train()
    assert not list(tmp_path.glob("checkpoint-*")) and "writing no checkpoint" in caplog.text


def test_latest_checkpoint_without_any(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path, STATE_NAME) is None
    assert latest_checkpoint(tmp_path / "nowhere", STATE_NAME) is None
    with pytest.raises(ValueError, match="expected a complete checkpoint to resume from"):
        trainer(tmp_path, "lora").train(resume_from_checkpoint=True)


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path / "a", "lora", num_rollouts=2).train()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="expected seed=7, as in this run, got seed=42"):
        trainer(tmp_path / "b", "lora", seed=7).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="expected steps_per_rollout=6, as in this run, got steps_per_rollout=4"):
        trainer(tmp_path / "b", "lora", num_ppo_epochs=3).train(resume_from_checkpoint=True)


def test_same_seed_same_run(tmp_path: Path) -> None:
    first, second = (trainer(tmp_path / name, "lora", save_rollouts=0) for name in "ab")
    other = trainer(tmp_path / "c", "lora", save_rollouts=0, seed=1)
    for ppo in (first, second, other):
        ppo.train()
    assert_same(first, second)
    assert rows(other) != rows(first)
