"""Fine-tune a policy against a reward with RLOO, through TRL. The same command resumes from the last checkpoint."""

from dataclasses import dataclass
from typing import Any

from shfcas.cli._rl import OnlineCommand, settings_of, train_online_command
from shfcas.training.online.config import RLOOConfig


@dataclass
class Config(RLOOConfig, OnlineCommand):
    """`shfcas rloo`."""


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    return train_online_command(config, "rloo", settings_of(config, RLOOConfig))
