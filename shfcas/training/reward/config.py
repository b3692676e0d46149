"""Configuration of reward models."""

from dataclasses import dataclass
from typing import ClassVar

from shfcas.training.lora import AdaptedRate, AdapterConfig, DefaultRates
from shfcas.training.optimizer import SupervisedConfig
from shfcas.utils.config import Options, option, unexpected, with_default


@dataclass
class RewardModelConfig(AdaptedRate, SupervisedConfig):
    """Training of a reward model; epochs, batch and weight decay as the authors of SHF-CAS set them."""

    RATES: ClassVar = DefaultRates(1e-4, 2e-5)

    objective: str = option(
        "reward",
        "what is learned: a reward (higher is better), or a cost (lower is better, 0 separates safe from unsafe)",
        ("reward", "cost"),
    )
    num_train_epochs: float = option(2.0, "passes over the preferences", ge=0, common=True)
    learning_rate: float | None = RATES.option("peak learning rate, on a cosine schedule")
    batch_size: int = option(4, "pairs per optimizer step", ge=1, common=True)
    weight_decay: float = with_default(SupervisedConfig, "weight_decay", 0.1)
    max_length: int | None = option(
        None, "maximum tokens of prompt and answer; see too_long for longer pairs (none: the model's context)", ge=1
    )
    too_long: str = option(
        "cut",
        "a pair longer than max_length: cut the beginning of its prompt, floor: leave the pair out, or error",
        ("cut", "floor", "error"),
    )
    new_pair_weight: int = option(1, "how often each newly labelled pair is repeated among the original ones", ge=1)
    centering: float | None = option(
        None, "weight of a loss that keeps the mean reward near zero (none: no such loss)", ge=0
    )
    held_out: float = option(
        0.1,
        "share of the prompts, of each source and round, that are measured on, not trained on",
        ge=0,
        lt=1,
        common=True,
    )
    eval_steps: float = option(
        0.2, "optimizer steps between measurements of the held-out loss (below 1: share of the training)", gt=0
    )
    early_stopping_patience: int = option(
        0,
        "stop after this many measurements without a lower held-out loss, and keep the best model (0: do not stop)",
        ge=0,
    )
    ensemble_size: int = option(1, "models to train, each with its own seed", ge=1, common=True)
    average_weights: bool = option(False, "average their weights into one model (WARM) instead of saving an ensemble")
    checkpoint_steps: int = option(
        0, "optimizer steps between resumable checkpoints (0: none; with early stopping: one per measurement)", ge=0
    )
    lora: AdapterConfig = option(lambda: AdapterConfig(r=0), "adapters")

    def check(self) -> None:
        """Checks the steps between measurements, and that there are weights to average."""
        super().check()
        if self.eval_steps > 1 and self.eval_steps != int(self.eval_steps):
            raise unexpected("eval_steps", "a whole number of steps, or a share below 1", self.eval_steps)
        if self.average_weights and self.ensemble_size < 2:
            raise unexpected("ensemble_size", "at least 2 with average_weights", self.ensemble_size)


LABELS, SECOND_OPINION, ARBITRATE, CLEAN = "labels", "second_opinion", "arbitrate", "clean"  # ways to refine
KEEP, DROP = "keep", "drop"


@dataclass
class SecondOpinionConfig(Options):
    """Soft labels from reward model and policy together."""

    reward_trust: float = option(0.5, "prior trust in the reward model, in log-odds per unit of z-score")
    policy_trust: float = option(0.5, "prior trust in the policy's score, in the same unit")
    group_by: str | None = option(
        None,
        "arbitrate, clean: column of the prompts by which trust in the reward model may differ (none: clusters of the "
        "prompts' embeddings)",
    )
    pairs_per_prompt: int | None = option(28, "soft labels per prompt, drawn at random (none: all pairs)", ge=1)
    old_pairs: str = option(
        DROP,
        "keep the original preferences among the pairs, or drop them: what the reward model learned from them is in "
        "its rewards",
        (KEEP, DROP),
    )


@dataclass
class RefineConfig(RewardModelConfig):
    """Refinement of the reward model in every round."""

    refine: str = option(
        LABELS,
        "what the model learns: the labels as further pairs, as in the paper; with them a second opinion, soft labels "
        "from reward model and policy together; soft labels whose trust in the two is learned from the labels; or the "
        "labels, and the original pairs without those of groups in which the labels contradict the reward model",
        (LABELS, SECOND_OPINION, ARBITRATE, CLEAN),
        common=True,
    )
    second_opinion: SecondOpinionConfig = option(
        SecondOpinionConfig, "refine second_opinion, arbitrate, clean: trust in reward model and policy, soft labels"
    )
    replay: float = option(
        1.0,
        "share of the original pairs that a round trains on, a new draw for each round (1: all, as in the paper)",
        ge=0,
        le=1,
    )
    start: str = option(
        "current", "model to refine: the current reward model, or the untrained backbone", ("current", "backbone")
    )
