"""Early stopping: the best evaluated policy, and when to stop training."""

from dataclasses import dataclass
from pathlib import Path

from shfcas.training.common import checkpoints
from shfcas.training.ppo.checkpoint import STATE_NAME, discard, read_state

PREFIX = "best-"


@dataclass
class EarlyStopping:
    """State of early stopping: the best evaluation so far, and the number of evaluations since.

    Attributes:
        patience: number of evaluations without improvement after which training stops.
        best: the best value of the metric; None before the first evaluation.
        rollout: number of the rollout before which the best policy was evaluated.
        waited: number of evaluations since then.
    """

    patience: int
    best: float | None = None
    rollout: int | None = None
    waited: int = 0

    def update(self, value: float | None, rollout: int) -> bool:
        """Records an evaluation (None: the policy is not eligible); returns whether it is a new best."""
        if value is not None and (self.best is None or value > self.best):
            self.best, self.rollout, self.waited = value, rollout, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Returns whether the patience is used up."""
        return self.waited >= self.patience


def best_folder(output_dir: Path, rollout: int) -> Path:
    """Returns the folder of the policy before a rollout."""
    return output_dir / f"{PREFIX}{rollout}"


def discard_former_best(output_dir: Path, current: int) -> None:
    """Deletes former best policies that neither the run nor a checkpoint to resume from refers to."""
    kept = {best_folder(output_dir, current)}
    for checkpoint in checkpoints(output_dir, STATE_NAME).values():
        rollout = (read_state(checkpoint, {}).get("early_stopping") or {}).get("rollout")
        if rollout is not None:
            kept.add(best_folder(output_dir, rollout))
    for folder in output_dir.glob(f"{PREFIX}*"):
        if folder not in kept:
            discard(folder)
