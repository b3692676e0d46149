"""Fine-tune a policy against a reward with PPO. The same command resumes from the last checkpoint."""

from dataclasses import dataclass
from typing import Any

from shfcas.cli._rl import OnlineCommand, settings_of, train_online_command
from shfcas.training.ppo.options import PPOStageConfig
from shfcas.training.sft import read_demonstrations
from shfcas.utils.config import option, unexpected


@dataclass
class Config(PPOStageConfig, OnlineCommand):
    """`shfcas ppo`."""

    demonstrations: str | None = option(
        None, "ptx_coef: prompts with completions: a file, org/name on the Hub, or module:function"
    )

    def check(self) -> None:
        """Checks that there are demonstrations where the loss has a term for them."""
        super().check()
        if bool(self.ptx_coef) != bool(self.demonstrations):
            got = self.ptx_coef, self.demonstrations
            raise unexpected("ptx_coef", "both ptx_coef above 0 and demonstrations, or neither", got)


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    shown = read_demonstrations(config.demonstrations, config.columns()) if config.demonstrations else []
    return train_online_command(config, "ppo", settings_of(config, PPOStageConfig), shown)
