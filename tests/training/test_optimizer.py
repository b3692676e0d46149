"""Settings of the optimizer: they reach the trainers, and an optimizer step in parts is the same step."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from shfcas.models.loading import load_policy
from shfcas.training import optimizer
from shfcas.training.lora import AdapterConfig
from shfcas.training.online.config import RLOOConfig
from shfcas.training.optimizer import SupervisedConfig
from shfcas.training.ppo.options import PPOStageConfig
from shfcas.training.ppo.trainer import PPOTrainer
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.rso import RSOConfig
from shfcas.training.sft import SFTStageConfig, train_sft
from shfcas.utils.errors import MissingExtra, UsageError
from tests.support.ppo_tiny import config, lora, prompts, share_of, tiny_classifier, tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("settings", "adapters", "all_weights"),
    [
        (PPOStageConfig, 3e-5, 3e-6), (RLOOConfig, 1e-4, 1e-6), (RSOConfig, 1e-4, 1e-6), (SFTStageConfig, 2e-4, 2e-5),
        (RewardModelConfig, 1e-4, 2e-5),
    ],
)  # fmt: skip
def test_adapters_and_all_weights_have_learning_rates_of_their_own(
    settings: Any, adapters: float, all_weights: float
) -> None:
    for rank, expected in ((8, adapters), (0, all_weights)):
        assert settings(lora=AdapterConfig(r=rank)).peak_learning_rate == expected
        assert settings(lora=AdapterConfig(r=rank), learning_rate=0.5).peak_learning_rate == 0.5


@pytest.mark.parametrize("settings", [SFTStageConfig, RSOConfig, RewardModelConfig])
def test_every_supervised_setting_reaches_a_trainer(settings: type[SupervisedConfig]) -> None:
    chosen = settings(
        optim="adafactor", weight_decay=0.2, warmup_steps=3, max_grad_norm=0.5, batch_size=8,
        gradient_accumulation_steps=4, activation_checkpointing=True,
    )  # fmt: skip
    assert chosen.step_options("batch_size") == {
        "optim": "adafactor", "weight_decay": 0.2, "warmup_steps": 3, "max_grad_norm": 0.5,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "gradient_checkpointing": True,
    }  # fmt: skip
    with pytest.raises(
        UsageError, match=r"batch_size: expected a multiple of gradient_accumulation_steps \(3\), got 8"
    ):
        dataclasses.replace(chosen, gradient_accumulation_steps=3)


def test_moments_of_8_bits_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"bitsandbytes is not installed; install it with: pip install 'shfcas\["):
        SFTStageConfig(optim="adamw_bnb_8bit").step_options("batch_size")


def test_fine_tuning_in_parts_is_the_same(policy: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"how was the {x}?", "completion": f"the {x} was good"} for x in ("soup", "train", "film", "day")
    ]
    weights = []
    for parts in (1, 2):
        settings = SFTStageConfig(
            num_train_epochs=2, learning_rate=1e-3, batch_size=4, gradient_accumulation_steps=parts,
            activation_checkpointing=parts == 2, lora=AdapterConfig(r=0),
        )  # fmt: skip
        output = tmp_path / str(parts)
        train_sft(policy, rows, settings=settings, output=output, work_dir=tmp_path / f"w{parts}", seed=0)
        weights.append(load_policy(str(output))[0].state_dict())
    start = load_policy(policy)[0].state_dict()
    moved = max((weights[0][name] - start[name]).abs().max() for name in start)
    apart = max((weights[0][name] - weights[1][name]).abs().max() for name in start)
    assert moved > 1e-3 and apart < 0.05 * moved


@pytest.mark.parametrize("kind", ["head", "model"])
def test_values_have_a_learning_rate_of_their_own(kind: str, tmp_path: Path) -> None:
    def trainer(**changes: Any) -> PPOTrainer:
        return PPOTrainer(
            tiny_model(), config(tmp_path, num_rollouts=1, **changes), train_dataset=prompts(),
            processing_class=tiny_tokenizer(), reward_funcs=share_of("w7"), peft_config=lora(),
            value_model=tiny_classifier(3) if kind == "model" else None,
        )  # fmt: skip

    ppo = trainer(value_learning_rate=0.0, learning_rate=1e-2)
    values = ppo.model.value_head if kind == "head" else ppo.model.value_model
    before = [parameter.detach().clone() for parameter in values.parameters()]
    ppo.train()
    assert all(torch.equal(p, start) for p, start in zip(values.parameters(), before, strict=True))
    assert any(p.abs().max() > 0 for name, p in ppo.model.policy.named_parameters() if "lora_B" in name)
    both = [group for group in ppo.optimizer.param_groups if group["params"]]
    assert {group["initial_lr"] for group in both} == {0.0, 1e-2}
