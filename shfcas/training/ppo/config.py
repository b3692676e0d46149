"""Settings of PPO."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from shfcas.training.ppo.options import PPOBaseConfig

# Settings of the base class that contradict how rollouts are laid out in time.
_UNSUPPORTED = {
    "eval_strategy": ("no", "set eval_rollouts to evaluate on held-out prompts"),
    "load_best_model_at_end": (False, "set early_stopping_patience to end with the best policy"),
    "auto_find_batch_size": (False, "the number of steps per rollout depends on the batch size"),
    "save_only_model": (False, "a checkpoint must be resumable; use save_model for the weights alone"),
}


@dataclass
class PPOConfig(PPOBaseConfig, TrainingArguments):
    """Settings of `PPOTrainer`: `PPOBaseConfig` and those of `transformers.TrainingArguments`.

    One rollout is `rollout_batch_size` prompts, each answered once, then `num_ppo_epochs` passes of
    optimizer steps on mini-batches of `per_device_train_batch_size * gradient_accumulation_steps *
    processes` completions. The number of steps, logging and saving follow from that: one log row per
    rollout, checkpoints between rollouts.
    """

    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "weights of several reward functions, in their order (none: 1 each)"}
    )
    adam_epsilon: float = field(default=1e-5, metadata={"help": "epsilon of AdamW (1e-5: Huang et al. 2024)"})

    # Derived from the fields above, so they are not arguments.
    max_steps: int = field(default=-1, init=False, metadata={"help": "num_rollouts x steps per rollout"})
    num_train_epochs: float = field(default=0.0, init=False, metadata={"help": "unused: max_steps counts"})
    logging_strategy: str = field(default="steps", init=False, metadata={"help": "one log row per rollout"})
    logging_steps: float = field(default=1, init=False, metadata={"help": "steps per rollout"})
    logging_first_step: bool = field(default=False, init=False, metadata={"help": "one log row per rollout"})
    save_strategy: str = field(default="no", init=False, metadata={"help": "between rollouts; see save_rollouts"})
    save_steps: float = field(default=1, init=False, metadata={"help": "save_rollouts x steps per rollout"})

    def __post_init__(self) -> None:
        for name, (allowed, remedy) in _UNSUPPORTED.items():
            if getattr(self, name) != allowed:
                raise ValueError(f"PPO does not support {name}={getattr(self, name)!r}: {remedy}")
        for name in ("num_rollouts", "rollout_batch_size", "generation_batch_size", "num_ppo_epochs"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("max_prompt_length", "max_completion_length", "kl_horizon"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("temperature", "cliprange", "cliprange_value", "kl_target", "max_kl", "reward_clip"):
            value = getattr(self, name)
            _check(name, value, value is None or value > 0, "a positive number")
        for name in ("kl_coef", "vf_coef", "entropy_coef", "length_penalty", "save_rollouts", "eval_rollouts"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _check("kl_estimator", self.kl_estimator, self.kl_estimator in ("k1", "k3"), "'k1' or 'k3'")
        patience = self.early_stopping_patience
        _check("early_stopping_patience", patience, patience is None or patience >= 1, "at least 1")
        if patience is not None and not self.eval_rollouts:
            raise ValueError("early_stopping_patience counts evaluations: set eval_rollouts as well")
        self.save_strategy = "steps" if self.save_rollouts else "no"
        super().__post_init__()

        step = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.rollout_batch_size % step:
            raise ValueError(
                f"rollout_batch_size={self.rollout_batch_size} must be a multiple of batch size x gradient "
                f"accumulation x processes = {step}"
            )
        self.logging_steps = self.steps_per_rollout
        self.save_steps = self.steps_per_rollout * max(1, self.save_rollouts)
        self.max_steps = self.steps_per_rollout * self.num_rollouts

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps after each rollout phase."""
        step = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        return self.num_ppo_epochs * self.rollout_batch_size // step


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
