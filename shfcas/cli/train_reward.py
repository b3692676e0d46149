"""Train or refine a reward model on preferences (TRL's RewardTrainer, Bradley-Terry loss)."""

from dataclasses import dataclass
from typing import Any

from shfcas.config import option
from shfcas.preferences import merge, read_preferences
from shfcas.training.reward import RewardSettings, train_reward_model
from shfcas.training.stage import trained_folder


@dataclass
class Config:
    """`shfcas train-reward`."""

    model: str = option("", "a reward model to refine, or a backbone that gets a fresh head")
    preferences: list[str] = option(list, "preference files, comma-separated, the most trusted last")
    held_out: str | None = option(None, "preferences that only measure the accuracy")
    output: str = option("reward-model", "the folder of the trained model")
    seed: int = option(0, "seed")
    reward: RewardSettings = option(RewardSettings, "training")


def run(config: Config) -> dict[str, Any]:
    """Merges the preferences, trains and saves the model."""
    preferences = merge(*(read_preferences(path) for path in config.preferences))
    held_out = read_preferences(config.held_out) if config.held_out else []
    with trained_folder(config.output) as (partial, work_dir):
        result = train_reward_model(config.model, preferences, config.reward, partial, work_dir, config.seed, held_out)
    return {**result, "output": config.output}
