"""Settings of the PPO trainer."""

import copy
from dataclasses import dataclass, field
from types import MappingProxyType

from transformers import TrainingArguments

from shfcas.training.common import on_one_device
from shfcas.training.ppo.options import PPOBaseConfig
from shfcas.utils.config import shared, unexpected

# Settings of the base class that contradict the schedule of rollouts: the allowed value, and what to do instead.
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
        PPOBaseConfig(**shared(self, PPOBaseConfig))  # checks them
        for name, (allowed, remedy) in _UNSUPPORTED.items():
            if getattr(self, name) != allowed:
                raise unexpected(name, repr(allowed), getattr(self, name), remedy)
        self.save_strategy = "steps" if self.save_rollouts else "no"
        TrainingArguments.__post_init__(self)
        on_one_device(self)

        step = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.rollout_batch_size % step:
            expected = f"a multiple of batch size x gradient accumulation x processes ({step})"
            raise unexpected("rollout_batch_size", expected, self.rollout_batch_size)
        self.logging_steps = self.steps_per_rollout
        self.save_steps = self.steps_per_rollout * max(1, self.save_rollouts)
        self.max_steps = self.steps_per_rollout * self.num_rollouts

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps after each rollout phase."""
        step = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        return self.num_ppo_epochs * self.rollout_batch_size // step


# transformers' HfArgumentParser hands all metadata of a field to argparse, which knows neither bounds nor remedies.
for _name in PPOBaseConfig.__dataclass_fields__:
    _field = copy.copy(PPOConfig.__dataclass_fields__[_name])
    _known = {key: _field.metadata[key] for key in ("help", "choices") if key in _field.metadata}
    _field.metadata = MappingProxyType(_known)
    PPOConfig.__dataclass_fields__[_name] = _field
