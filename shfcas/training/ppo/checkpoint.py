"""State of PPO's checkpoints, which are either complete or ignored.

A checkpoint folder is complete if it contains `ppo_state.json`. This file is written last, after everything else in the
folder is on disk.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from shfcas.utils.files import fsync

STATE_NAME = "ppo_state.json"
VALUE_HEAD_NAME = "value_head.safetensors"
VALUE_MODEL_NAME = "value_model"


def discard(checkpoint: Path) -> None:
    """Deletes a checkpoint, its marker first, so that a half-deleted checkpoint is incomplete."""
    (checkpoint / STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def mark_complete(checkpoint: Path, state: dict[str, Any]) -> None:
    """Writes the marker after all other files are on disk."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            fsync(path)
    temporary = checkpoint / (STATE_NAME + ".tmp")
    temporary.write_text(json.dumps(state, indent=2) + "\n")
    fsync(temporary)
    temporary.replace(checkpoint / STATE_NAME)
    fsync(checkpoint)


def read_state(checkpoint: str | os.PathLike[str], expected: dict[str, Any]) -> dict[str, Any]:
    """Reads the state of a checkpoint from its marker.

    Raises:
        ValueError: the checkpoint is incomplete, or its values differ from `expected`.
    """
    path = Path(checkpoint) / STATE_NAME
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a complete PPO checkpoint: it has no {STATE_NAME}")
    state = json.loads(path.read_text())
    for name, value in expected.items():
        if state[name] != value:
            raise ValueError(f"{checkpoint}: expected {name}={value}, as in this run, got {name}={state[name]}")
    return state
