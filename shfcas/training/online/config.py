"""Configuration of RLOO and GRPO."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from shfcas.training.common import quiet_options
from shfcas.training.lora import AdaptedRate, AdapterConfig, DefaultRates
from shfcas.training.optimizer import OptimizerConfig
from shfcas.utils.config import check_multiple, option, with_default


@dataclass
class OnlineConfig(AdaptedRate, OptimizerConfig):
    """Settings that RLOO and GRPO share: groups of answers to one prompt, each compared with the others."""

    RATES: ClassVar = DefaultRates(1e-4, 1e-6)

    num_rollouts: int = option(50, "number of rollouts", ge=1, common=True)
    rollout_batch_size: int = option(64, "answers per rollout, num_generations to each prompt", ge=1, common=True)
    num_generations: int = option(
        4, "answers per prompt", ge=2, remedy="answers to one prompt are compared with each other", common=True
    )
    mini_batch_size: int = option(16, "answers per optimizer step", ge=1)
    gradient_accumulation_steps: int = option(1, "parts of an optimizer step; more parts take less memory", ge=1)
    generation_batch_size: int = option(64, "sequences generated at the same time", ge=1)
    num_iterations: int = option(1, "passes over each rollout (mu in Shao et al. 2024)", ge=1)
    learning_rate: float | None = RATES.option("peak learning rate")
    lr_scheduler_type: str = option("linear", "learning-rate schedule", ("linear", "constant", "cosine"))
    max_prompt_length: int = option(512, "maximum tokens per prompt; a longer prompt is an error", ge=1)
    max_completion_length: int = option(128, "maximum new tokens per answer", ge=1, common=True)
    temperature: float = option(1.0, "sampling temperature; log-probabilities are at the same one", gt=0)
    kl_coef: float = option(0.05, "weight of the KL penalty (TRL's beta)", ge=0, common=True)
    max_kl: float | None = option(
        100.0,
        "maximum mean KL of a rollout, in nats per answer; above it, training stops (none: no limit)",
        gt=0,
    )
    cliprange: float = option(0.2, "clip range of the probability ratio (TRL's epsilon; Schulman et al. 2017)", gt=0)
    reward_clip: float | None = option(None, "clip rewards to [-x, x] (none: no clipping)", gt=0)
    missing_eos_penalty: float | None = option(
        None, "subtracted from the reward of an answer without an end token (none: nothing)", ge=0
    )
    activation_checkpointing: bool = option(
        False, "recompute activations in the backward pass instead of keeping them, to save memory"
    )
    save_rollouts: int = option(10, "rollouts between resumable checkpoints (0: none)", ge=0)
    lora: AdapterConfig = option(AdapterConfig, "adapters")

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps after each rollout phase."""
        return self.num_iterations * self.rollout_batch_size // self.mini_batch_size

    def check(self) -> None:
        """Checks that batches divide rollouts, and their parts batches."""
        check_multiple(self, "rollout_batch_size", "num_generations")
        check_multiple(self, "rollout_batch_size", "mini_batch_size")
        check_multiple(self, "mini_batch_size", "gradient_accumulation_steps")

    def trainer_options(self, work_dir: Path, seed: int) -> dict[str, Any]:
        """Returns arguments for TRL's configuration classes; all others keep TRL's defaults."""
        return {
            **quiet_options(work_dir, seed),
            **self.optimizer_options(),
            "max_steps": self.num_rollouts * self.steps_per_rollout,
            "per_device_train_batch_size": self.mini_batch_size // self.gradient_accumulation_steps,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "generation_batch_size": self.rollout_batch_size,
            "num_generations": self.num_generations,
            "num_iterations": self.num_iterations,
            "learning_rate": self.peak_learning_rate,
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

    num_generations: int = with_default(OnlineConfig, "num_generations", 8)
    kl_coef: float = option(
        0.04, "weight of the KL term in the loss (TRL's beta; 0.04: Shao et al. 2024)", ge=0, common=True
    )
    scale_rewards: str = option(
        "group",
        "divide advantages by the standard deviation of the group, of the rollout, or by nothing",
        ("group", "batch", "none"),
    )
    loss_type: str = option(
        "dapo", "average of the loss over tokens, as TRL names it", ("dapo", "grpo", "dr_grpo", "bnpo")
    )

    def trainer_options(self, work_dir: Path, seed: int) -> dict[str, Any]:
        """Returns arguments for TRL's GRPOConfig."""
        return {
            **super().trainer_options(work_dir, seed),
            "scale_rewards": self.scale_rewards,
            "loss_type": self.loss_type,
        }
