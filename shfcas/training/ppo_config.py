"""Settings of PPO."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

# Settings of the base class that contradict how rollouts are laid out in time.
_UNSUPPORTED = {
    "eval_strategy": ("no", "pass metric_funcs to follow a metric on every rollout"),
    "load_best_model_at_end": (False, "there is no evaluation to choose by"),
    "auto_find_batch_size": (False, "the number of steps per rollout depends on the batch size"),
    "save_only_model": (False, "a checkpoint must be resumable; use save_model for the weights alone"),
}


@dataclass
class PPOConfig(TrainingArguments):
    """Settings of `PPOTrainer`, beside those of `transformers.TrainingArguments`.

    One rollout is `rollout_batch_size` prompts, each answered once, then `num_ppo_epochs` passes of
    optimizer steps on mini-batches of `per_device_train_batch_size * gradient_accumulation_steps *
    processes` completions. The number of steps, logging and saving follow from that: one log row per
    rollout, checkpoints between rollouts.
    """

    num_rollouts: int = field(default=100, metadata={"help": "Number of rollout phases."})
    rollout_batch_size: int = field(
        default=64, metadata={"help": "Prompts per rollout phase, over all processes; each is answered once."}
    )
    generation_batch_size: int = field(
        default=32,
        metadata={"help": "Sequences per chunk when generating and when scoring without gradient."},
    )
    num_ppo_epochs: int = field(
        default=4,
        metadata={"help": "Passes over each rollout (4 in Stiennon et al. 2020 and Huang et al. 2024)."},
    )
    max_prompt_length: int = field(
        default=512, metadata={"help": "A prompt with more tokens is an error, never truncated."}
    )
    max_completion_length: int = field(default=128, metadata={"help": "New tokens after which sampling stops."})
    temperature: float = field(
        default=1.0,
        metadata={"help": "Sampling temperature; log-probabilities are taken at the same temperature."},
    )
    stop_token_ids: list[int] | None = field(
        default=None,
        metadata={"help": "Ids that end a completion; default: EOS of the generation config and the tokenizer."},
    )
    kl_coef: float = field(
        default=0.05,
        metadata={"help": "Weight of the KL penalty in the reward (0.05: Stiennon et al. 2020)."},
    )
    kl_target: float | None = field(
        default=None,
        metadata={"help": "Sequence KL that an adaptive kl_coef steers to (Ziegler et al. 2019); None: fixed."},
    )
    kl_horizon: int = field(
        default=10_000,
        metadata={"help": "Samples over which the adaptive kl_coef reacts (Ziegler et al. 2019)."},
    )
    kl_estimator: str = field(
        default="k1",
        metadata={
            "help": "Per-token KL estimate: k1 (log-ratio) or k3 (never negative; Schulman 2020).",
            "choices": ["k1", "k3"],
        },
    )
    max_kl: float | None = field(
        default=None,
        metadata={"help": "Training stops when a rollout's mean sequence KL exceeds this; None: never."},
    )
    cliprange: float = field(
        default=0.2, metadata={"help": "Clip range of the probability ratio (0.2: Schulman et al. 2017)."}
    )
    cliprange_value: float = field(
        default=0.2, metadata={"help": "Clip range of the value around its old one (0.2: Huang et al. 2024)."}
    )
    vf_coef: float = field(
        default=0.1,
        metadata={"help": "Weight of the value loss (0.1: Stiennon et al. 2020, Huang et al. 2024)."},
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per token (1: Stiennon et al. 2020)."})
    lam: float = field(
        default=0.95,
        metadata={"help": "Lambda of generalised advantage estimation (0.95: Schulman et al. 2017)."},
    )
    whiten_advantages: bool = field(
        default=True,
        metadata={"help": "Scale a rollout's advantages, per process, to mean 0, variance 1 (Huang et al. 2024)."},
    )
    reward_clip: float | None = field(
        default=None, metadata={"help": "Clip scores to [-x, x] before penalties are added; None: do not."}
    )
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={"help": "Subtracted from the score of a completion without stop token (Huang et al. 2024)."},
    )
    save_rollouts: int = field(
        default=0, metadata={"help": "Checkpoint every so many rollouts, and at the end; 0: no checkpoints."}
    )
    learning_rate: float = field(
        default=1e-5, metadata={"help": "Initial learning rate (1.5e-5: Stiennon et al. 2020)."}
    )
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Epsilon of AdamW (1e-5: Huang et al. 2024)."})

    # Derived from the fields above, so they are not arguments.
    max_steps: int = field(default=-1, init=False, metadata={"help": "num_rollouts x steps per rollout."})
    num_train_epochs: float = field(default=0.0, init=False, metadata={"help": "Unused: max_steps counts."})
    logging_strategy: str = field(default="steps", init=False, metadata={"help": "One log row per rollout."})
    logging_steps: float = field(default=1, init=False, metadata={"help": "Steps per rollout."})
    logging_first_step: bool = field(default=False, init=False, metadata={"help": "One log row per rollout."})
    save_strategy: str = field(default="no", init=False, metadata={"help": "Between rollouts; see save_rollouts."})
    save_steps: float = field(default=1, init=False, metadata={"help": "save_rollouts x steps per rollout."})

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
        _check("kl_coef", self.kl_coef, self.kl_coef >= 0, "0 or more")
        _check("kl_estimator", self.kl_estimator, self.kl_estimator in ("k1", "k3"), "'k1' or 'k3'")
        _check("save_rollouts", self.save_rollouts, self.save_rollouts >= 0, "0 or more")
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
