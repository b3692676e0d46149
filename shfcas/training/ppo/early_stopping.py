"""Which of the evaluated policies is the best one, and when to stop looking for a better."""

from dataclasses import dataclass
from pathlib import Path

from shfcas.training.common import checkpoints
from shfcas.training.ppo.checkpoint import STATE_NAME, discard, read_state

PREFIX = "best-"


@dataclass
class EarlyStopping:
    """The best evaluation so far, and how many have followed it.

    Attributes:
        patience: evaluations without a new best one after which the training stops.
        best: the best value of the metric; None before the first evaluation.
        rollout: the number of the rollout before which the best policy was evaluated.
        waited: evaluations since then.
    """

    patience: int
    best: float | None = None
    rollout: int | None = None
    waited: int = 0

    def update(self, value: float | None, rollout: int) -> bool:
        """Takes an evaluation into account (None: the policy does not count); returns whether it is a new best."""
        if value is not None and (self.best is None or value > self.best):
            self.best, self.rollout, self.waited = value, rollout, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether there has been no new best for too long."""
        return self.waited >= self.patience


def best_folder(output_dir: Path, rollout: int) -> Path:
    """Where the policy of before a rollout is kept."""
    return output_dir / f"{PREFIX}{rollout}"


def discard_former_best(output_dir: Path, current: int) -> None:
    """Deletes best policies that neither the run nor a checkpoint, from which it may go on, refers to."""
    kept = {best_folder(output_dir, current)}
    for checkpoint in checkpoints(output_dir, STATE_NAME).values():
        rollout = (read_state(checkpoint, {}).get("early_stopping") or {}).get("rollout")
        if rollout is not None:
            kept.add(best_folder(output_dir, rollout))
    for folder in output_dir.glob(f"{PREFIX}*"):
        if folder not in kept:
            discard(folder)
