"""Fine-tune a policy against a reward with PPO. The same command resumes from the last checkpoint."""

from dataclasses import dataclass
from typing import Any

from shfcas.cli._rl import OnlineCommand, settings_of, train_online_command
from shfcas.training.ppo.train import PPOStageConfig


@dataclass
class Config(PPOStageConfig, OnlineCommand):
    """`shfcas ppo`."""


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    return train_online_command(config, "ppo", settings_of(config, PPOStageConfig))
