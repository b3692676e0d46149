"""Settings of reward models."""

from dataclasses import dataclass

from shfcas.training.lora import AdapterConfig
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError


@dataclass
class RewardModelConfig:
    """Training of a reward model; epochs, batch and weight decay as the authors of SHF-CAS set them."""

    objective: str = option(
        "reward",
        "what is learned: a reward, or a cost (lower is better, 0 divides safe and unsafe)",
        ("reward", "cost"),
    )
    num_train_epochs: float = option(2.0, "passes over the preferences", common=True)
    learning_rate: float = option(2e-5, "peak learning rate (cosine)", common=True)
    batch_size: int = option(4, "pairs a step", common=True)
    weight_decay: float = option(0.1, "weight decay")
    max_length: int | None = option(None, "tokens of prompt and answer (none: what the model can see)")
    new_pair_weight: int = option(1, "how often each newly labelled pair is repeated among the original ones")
    centering: float | None = option(None, "coefficient that keeps the mean reward near zero (none: off)")
    held_out: float = option(
        0.1, "share of the prompts, of each source and round, that is only measured on", common=True
    )
    eval_steps: float = option(0.2, "measure the held-out loss every so many steps (below 1: share of the training)")
    early_stopping_patience: int = option(
        0, "stop after so many held-out losses that are no better than the best, and keep the best model (0: never)"
    )
    ensemble_size: int = option(1, "models to train, each with a seed of its own", common=True)
    average_weights: bool = option(False, "one model with the mean of their weights instead of an ensemble (WARM)")
    checkpoint_steps: int = option(
        0, "keep a resumable checkpoint every so many steps (0: none; with early stopping: at each measurement)"
    )
    lora: AdapterConfig = option(lambda: AdapterConfig(r=0), "adapters (r = 0: all weights are trained)")

    def __post_init__(self) -> None:
        """Refuses what can never work, before any work is done."""
        if not 0 <= self.held_out < 1:
            raise UsageError(f"held_out: expected a share of 0 <= held_out < 1, got {self.held_out}")
        if self.eval_steps <= 0 or (self.eval_steps > 1 and self.eval_steps != int(self.eval_steps)):
            raise UsageError(f"eval_steps: expected a number of steps, or a share below 1, got {self.eval_steps}")
        for name, least in (("new_pair_weight", 1), ("early_stopping_patience", 0), ("ensemble_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.average_weights and self.ensemble_size < 2:
            raise UsageError("average_weights needs models to average: set ensemble_size to 2 or more")


@dataclass
class RefineConfig(RewardModelConfig):
    """The refinement of the reward model in every round."""

    start: str = option(
        "current", "refine the current reward model, or the untrained backbone", ("current", "backbone")
    )
