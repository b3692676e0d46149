"""`train_ppo`: PPO as a stage, with the settings of a run."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shfcas.models import loading
from shfcas.training.lora import AdapterConfig
from shfcas.training.ppo.options import PPOBaseConfig, PPOStageConfig
from shfcas.training.ppo.train import split_prompts, train_ppo
from shfcas.training.ppo.trainer import PPOConfig, PPOTrainer
from shfcas.utils.config import build, shared, to_dict
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json
from tests.support import tiny

# Options whose default differs between a run's settings and the trainer.
DIFFERENT = {"num_rollouts", "generation_batch_size", "learning_rate", "max_kl", "save_rollouts"}
OWN = {
    "mini_batch_size",
    "gradient_accumulation_steps",
    "activation_checkpointing",
    "lr_scheduler_type",
    "value_model",
    "bf16_reference",
    "cost",
    "held_out",
    "report_to",
    "lora",
    "optim",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
}


def settings(**changes: object) -> PPOStageConfig:
    small = {
        "num_rollouts": 2,
        "rollout_batch_size": 8,
        "mini_batch_size": 4,
        "num_ppo_epochs": 1,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
    }
    return PPOStageConfig(**small | changes)


def train(folder: Path, demonstrations: Any = (), **changes: object) -> list[dict[str, Any]]:
    policy = str(folder / "policy") if (folder / "policy").exists() else tiny.save_policy(folder / "policy")
    metrics = {"gold": tiny.letter_reward}
    return train_ppo(
        policy,
        tiny.prompts(8),
        reward=tiny.letter_reward,
        settings=settings(**changes),
        output=folder / "new",
        work_dir=folder / "work",
        seed=0,
        metrics=metrics,
        demonstrations=demonstrations,
    )


def fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls)}


def test_settings_and_config_say_the_same() -> None:
    """One list of options; the trainer's and the stage's differ in the defaults and fields above alone."""
    options, mine, config = fields(PPOBaseConfig), fields(PPOStageConfig), fields(PPOConfig)
    types = [typing.get_type_hints(cls) for cls in (PPOBaseConfig, PPOStageConfig, PPOConfig)]
    for name, field in options.items():
        assert config[name].default == field.default, name
        assert config[name].metadata == {k: field.metadata[k] for k in ("help", "choices") if k in field.metadata}
        assert (mine[name].default != field.default) == (name in DIFFERENT), name
        assert types[0][name] == types[2][name], name
        if name == "learning_rate":  # a run chooses one by what is trained
            assert types[1][name] == types[0][name] | None and mine[name].metadata["help"]
            continue
        assert types[1][name] == types[0][name], name
        assert mine[name].metadata == field.metadata and field.metadata["help"], name
    assert mine.keys() - options.keys() == OWN


def test_settings_come_from_yaml() -> None:
    assert build(PPOStageConfig, to_dict(PPOStageConfig())) == PPOStageConfig()
    evaluated = {"held_out": 0.1, "eval_rollouts": 5}
    values = {"stop_token_ids": [1, 2], "early_stopping_patience": "3", "kl_estimator": "k3", "lora": {"r": 0}}
    assert build(PPOStageConfig, values | evaluated) == PPOStageConfig(
        stop_token_ids=[1, 2], early_stopping_patience=3, kl_estimator="k3", lora=AdapterConfig(r=0), **evaluated
    )


def test_every_setting_reaches_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option with another value than its default."""
    other = {
        "temperature": 0.9, "stop_token_ids": [0], "kl_coef": 0.1, "kl_target": 3.0, "kl_horizon": 0.5,
        "kl_estimator": "k3", "max_kl": 7.0, "cliprange": 0.1, "cliprange_value": 0.3, "vf_coef": 0.2,
        "entropy_coef": 0.01, "gamma": 0.99, "lam": 0.9, "whiten_advantages": False, "normalize_rewards": True,
        "reward_clip": 3.0, "missing_eos_penalty": 1.0, "length_penalty": 0.1, "eval_rollouts": 1,
        "early_stopping_metric": "gold", "early_stopping_patience": 2, "log_completions": True, "save_rollouts": 1,
        "num_rollouts": 1, "rollout_batch_size": 6, "generation_batch_size": 3, "num_ppo_epochs": 3,
        "learning_rate": 1e-4, "max_prompt_length": 60, "max_completion_length": 5, "lr_scheduler_type": "cosine",
        "dual_clip": 3.0, "max_update_kl": 0.5, "kl_in_loss": True, "value_warmup_rollouts": 1,
        "whiten_rewards": True, "ptx_coef": 0.5, "cost_limit": 0.2, "cost_multiplier": 0.5,
        "cost_multiplier_rate": 0.3, "cost_multiplier_max": 4.0,
        "gradient_accumulation_steps": 3, "activation_checkpointing": True, "value_learning_rate": 2e-4,
        "optim": "adafactor", "weight_decay": 0.1, "warmup_steps": 0.5, "max_grad_norm": 2.0,
    }  # fmt: skip
    assert {*other, "report_to"} == shared(settings(), PPOConfig).keys()
    seen: list[PPOConfig] = []
    start = PPOTrainer.train
    monkeypatch.setattr(PPOTrainer, "train", lambda self, **kwargs: seen.append(self.args) or start(self, **kwargs))
    shown = [{"prompt": "how was it?", "completion": "a good day"}]
    train(tmp_path, shown, **other, held_out=0.25, mini_batch_size=6)
    (args,) = seen
    for name, value in other.items():
        assert getattr(args, name) == value != getattr(PPOStageConfig(), name), name
    assert args.per_device_train_batch_size == 2 and args.report_to == []


@pytest.mark.parametrize("rank", [0, 4])
def test_a_reference_in_bfloat16(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of its own where all weights are trained; its KL to the start is rounding, not drift."""
    seen, start = [], PPOTrainer.train
    monkeypatch.setattr(PPOTrainer, "train", lambda self, **kwargs: seen.append(self) or start(self, **kwargs))
    row, *_ = train(tmp_path, bf16_reference=True, lora=AdapterConfig(r=rank), num_rollouts=1)
    reference = seen[0].collector.reference.ref_model
    if rank:
        assert reference is None and row["objective/kl"] == 0
    else:
        assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in seen[0].model.policy.parameters()} == {torch.float32}
        assert 0 < abs(row["objective/kl"]) < 0.1


def test_split_prompts() -> None:
    prompts = tiny.prompts(12)
    prompts = [*prompts, prompts[0] | {"prompt_id": "again"}]
    chosen = settings(held_out=0.25, eval_rollouts=1)
    different = {json.dumps(row["prompt"]) for row in prompts}
    first, second = split_prompts(prompts, chosen, 0)
    assert sorted(first + second, key=str) == sorted(prompts, key=str)
    texts = [{json.dumps(row["prompt"]) for row in part} for part in (first, second)]
    assert not texts[0] & texts[1]
    assert len(texts[1]) == round(len(different) / 4)
    assert split_prompts(prompts, chosen, 0) == (first, second)
    assert any(split_prompts(prompts, chosen, seed) != (first, second) for seed in range(1, 5))
    assert split_prompts(prompts, settings(), 0) == (prompts, [])


def test_held_out_prompts_are_evaluated_and_never_trained_on(tmp_path: Path) -> None:
    changes = {"num_rollouts": 4, "log_completions": True, "eval_rollouts": 2, "held_out": 0.5}
    history = train(tmp_path, **changes, early_stopping_patience=5, early_stopping_metric="gold")
    assert [("eval_gold" in row, "objective/kl" in row) for row in history] == [
        (True, True), (False, True), (True, True), (False, True), (True, False),
    ]  # fmt: skip
    lines = [p.read_text().splitlines() for p in sorted((tmp_path / "new" / "completions").iterdir())]
    asked = {json.loads(line)["prompt"][0]["content"] for part in lines for line in part}
    train_prompts, held_out = split_prompts(tiny.prompts(8), settings(**changes), 0)
    assert asked == {row["prompt"][0]["content"] for row in train_prompts}
    assert not asked & {row["prompt"][0]["content"] for row in held_out}


def test_trackers_and_completions_outlive_the_checkpoints(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = train(tmp_path, report_to=["tensorboard"], log_completions=True)
    (folder,) = (tmp_path / "new" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/objective/gold")]
    assert logged == pytest.approx([row["objective/gold"] for row in history])
    assert len(list((tmp_path / "new" / "completions").iterdir())) == 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "new")


def test_by_default_nothing_is_reported_and_nothing_written_but_the_model(tmp_path: Path) -> None:
    history = train(tmp_path)
    assert not (tmp_path / "new" / "runs").exists() and not (tmp_path / "new" / "completions").exists()
    assert [row["rollout"] for row in history] == [0, 1]
    assert not [name for row in history for name in row if name.startswith("eval_")]


def test_a_value_model_by_name(tmp_path: Path) -> None:
    train(tmp_path, value_model=tiny.save_policy(tmp_path / "critic", seed=5))
    state = tmp_path / "work" / "checkpoint-4" / "value_model" / "config.json"
    assert read_json(state)["architectures"] == ["LlamaForSequenceClassification"]


@pytest.mark.parametrize(("rank", "dtype"), [(0, torch.float32), (8, torch.bfloat16)])
def test_weights_that_are_trained_are_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, dtype: torch.dtype
) -> None:
    """On a GPU models load in bfloat16, which is good enough for frozen weights only."""
    monkeypatch.setattr(loading, "_dtype", lambda: torch.bfloat16)
    seen: list[PPOTrainer] = []
    start = PPOTrainer.train
    monkeypatch.setattr(PPOTrainer, "train", lambda self, **kwargs: seen.append(self) or start(self, **kwargs))
    train(tmp_path, lora=AdapterConfig(r=rank))
    weight = next(p for n, p in seen[0].model.policy.named_parameters() if "up_proj" in n and "lora" not in n)
    assert weight.dtype == dtype
    assert {p.dtype for p in seen[0].model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 0.5}, r"held_out: expected both held_out and eval_rollouts above 0, or neither, got \(0\.5, 0\)"),
        ({"eval_rollouts": 1}, "held_out: expected both held_out and eval_rollouts above 0, or neither"),
        ({"held_out": 0.01, "eval_rollouts": 1}, "held_out: expected prompts on both sides, got 0 of 8"),
        ({"held_out": 0.99, "eval_rollouts": 1}, "held_out: expected prompts on both sides, got 8 of 8"),
        ({"held_out": 1.0, "eval_rollouts": 1}, "held_out: expected at least 0 and below 1, got 1.0"),
        (
            {"gradient_accumulation_steps": 3},
            r"mini_batch_size: .* gradient_accumulation_steps \(3\), got 4",
        ),
        ({"early_stopping_patience": 1}, "eval_rollouts: expected at least 1 with early_stopping_patience, got 0"),
        (
            {"report_to": ["tensorboard", "wandb"]},
            "there is no tracker wandb; install it with: pip install wandb",
        ),
        ({"value_model": "./nowhere"}, "no model at ./nowhere: the folder does not exist"),
    ],
)
def test_errors(tmp_path: Path, changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(UserError, match=message):
        train(tmp_path, **changes)
    assert not (tmp_path / "new").exists()


def test_several_visible_gpus_without_a_launcher_change_no_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With eight of them, transformers would multiply every batch by eight and use nn.DataParallel."""
    from transformers import TrainingArguments
    from trl import SFTConfig

    from shfcas.training.common import on_one_device

    make = TrainingArguments.__post_init__

    def with_eight(self: TrainingArguments) -> None:
        make(self)
        assert self.device is not None
        self._n_gpu = 8

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_eight)
    plain = SFTConfig(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, bf16=False)
    assert plain.train_batch_size == 32
    assert on_one_device(plain).train_batch_size == 4
    ppo = PPOConfig(str(tmp_path), rollout_batch_size=8, per_device_train_batch_size=4, use_cpu=True)
    assert (ppo.train_batch_size, ppo.steps_per_rollout) == (4, 2 * ppo.num_ppo_epochs)
