"""PPO training of a policy against reward functions, usable without the rest of the package.

`PPOConfig` and `PPOTrainer` load transformers, so they are imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shfcas.training.ppo.config import PPOConfig
    from shfcas.training.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str) -> Any:
    if name == "PPOTrainer":
        from shfcas.training.ppo.trainer import PPOTrainer

        return PPOTrainer
    if name == "PPOConfig":
        from shfcas.training.ppo.config import PPOConfig

        return PPOConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
