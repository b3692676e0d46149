"""Configuration of RLOO and GRPO."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.training.common import quiet_options
from shfcas.training.lora import AdapterConfig
from shfcas.utils.config import option
from shfcas.utils.errors import UserError


@dataclass
class OnlineConfig:
    """What RLOO and GRPO have in common: groups of answers to one prompt, each judged against the others."""

    num_rollouts: int = option(50, "rollout phases", common=True)
    rollout_batch_size: int = option(64, "answers a rollout, num_generations to each prompt", common=True)
    num_generations: int = option(4, "answers to each prompt, which are compared with each other", common=True)
    mini_batch_size: int = option(16, "answers an optimizer step")
    gradient_accumulation_steps: int = option(
        1, "parts in which a step's answers pass the model; more take less memory"
    )
    generation_batch_size: int = option(64, "sequences generated at once")
    num_iterations: int = option(1, "passes over each rollout (mu in Shao et al. 2024)")
    learning_rate: float = option(1e-5, "peak learning rate", common=True)
    lr_scheduler_type: str = option("linear", "learning-rate schedule", ("linear", "constant", "cosine"))
    max_prompt_length: int = option(512, "longer prompts are an error")
    max_completion_length: int = option(128, "an answer ends here if it has not ended by itself", common=True)
    temperature: float = option(1.0, "sampling temperature; log-probabilities are taken at the same one")
    kl_coef: float = option(0.05, "weight of the KL penalty (TRL's beta)", common=True)
    max_kl: float | None = option(100.0, "a rollout whose mean KL exceeds this stops the stage (none: never)")
    cliprange: float = option(0.2, "clip range of the probability ratio (TRL's epsilon; Schulman et al. 2017)")
    reward_clip: float | None = option(None, "clip rewards to [-x, x] (none: do not)")
    missing_eos_penalty: float | None = option(None, "taken from the reward of an answer that did not end (none: 0)")
    activation_checkpointing: bool = option(False, "compute activations twice instead of keeping them, to save memory")
    save_rollouts: int = option(10, "keep a resumable checkpoint every so many rollouts (0: none)")
    lora: AdapterConfig = option(AdapterConfig, "adapters")

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps after each rollout phase."""
        return self.num_iterations * self.rollout_batch_size // self.mini_batch_size

    def check(self) -> None:
        """Raises a `UserError` that names the settings that do not fit together."""
        for name in (
            "num_rollouts",
            "mini_batch_size",
            "gradient_accumulation_steps",
            "generation_batch_size",
            "num_iterations",
            "max_prompt_length",
            "max_completion_length",
        ):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("temperature", "cliprange", "max_kl", "reward_clip"):
            value = getattr(self, name)
            _check(name, value, value is None or value > 0, "a positive number")
        _check("num_generations", self.num_generations, self.num_generations >= 2, "at least 2: answers are compared")
        _check("kl_coef", self.kl_coef, self.kl_coef >= 0, "0 or more")
        _check("save_rollouts", self.save_rollouts, self.save_rollouts >= 0, "0 or more")
        for whole, part in (
            ("rollout_batch_size", "num_generations"),
            ("rollout_batch_size", "mini_batch_size"),
            ("mini_batch_size", "gradient_accumulation_steps"),
        ):
            if getattr(self, whole) < 1 or getattr(self, whole) % getattr(self, part):
                raise UserError(f"{whole}={getattr(self, whole)} must be a multiple of {part}={getattr(self, part)}")

    def trainer_options(self, work_dir: Path, seed: int) -> dict[str, Any]:
        """Arguments for TRL's configuration classes; what is not named here keeps TRL's default."""
        return {
            **quiet_options(work_dir, seed),
            "max_steps": self.num_rollouts * self.steps_per_rollout,
            "per_device_train_batch_size": self.mini_batch_size // self.gradient_accumulation_steps,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "generation_batch_size": self.rollout_batch_size,
            "num_generations": self.num_generations,
            "num_iterations": self.num_iterations,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.lr_scheduler_type,
            "max_completion_length": self.max_completion_length,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "epsilon": self.cliprange,
            "beta": self.kl_coef,
            "disable_dropout": True,
            "shuffle_dataset": False,  # the rows are in their order already
            "gradient_checkpointing": self.activation_checkpointing,
            "logging_steps": self.steps_per_rollout,
            "save_strategy": "steps" if self.save_rollouts else "no",
            "save_steps": self.steps_per_rollout * max(1, self.save_rollouts),
            "save_total_limit": 2,
        }


@dataclass
class RLOOConfig(OnlineConfig):
    """REINFORCE with the mean of the other answers as its baseline (Ahmadian et al. 2024, arXiv 2402.14740)."""


@dataclass
class GRPOConfig(OnlineConfig):
    """Advantages relative to the group of answers, the KL in the loss (Shao et al. 2024, arXiv 2402.03300)."""

    num_generations: int = option(8, "answers to each prompt, which are compared with each other", common=True)
    kl_coef: float = option(0.04, "weight of the KL term in the loss (TRL's beta; 0.04: Shao et al. 2024)", common=True)
    scale_rewards: str = option(
        "group",
        "advantages are divided by the deviation of the group, of the rollout, or not",
        ("group", "batch", "none"),
    )
    loss_type: str = option(
        "dapo", "how the loss is averaged over tokens; see TRL", ("dapo", "grpo", "dr_grpo", "bnpo")
    )

    def trainer_options(self, work_dir: Path, seed: int) -> dict[str, Any]:
        """Arguments for TRL's GRPOConfig."""
        return {
            **super().trainer_options(work_dir, seed),
            "scale_rewards": self.scale_rewards,
            "loss_type": self.loss_type,
        }


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"{name} must be {expected}, got {value!r}")
