"""Functions that all training shares: options of quiet trainers, resumable checkpoints, merged adapters."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shfcas.utils import distributed
from shfcas.utils.files import disk_errors, remove
from shfcas.utils.progress import trainer_progress


def quiet_options(work_dir: Path, seed: int) -> dict[str, Any]:
    """Returns arguments for any transformers Trainer: one seed, no trackers, our own progress bar."""
    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(work_dir),
        "seed": seed,
        "report_to": "none",
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "dataloader_pin_memory": gpu,
        "disable_tqdm": True,
        "log_level": "error",
    }


def supervised_options(work_dir: Path, seed: int, checkpoint_steps: int) -> dict[str, Any]:
    """Returns arguments for TRL's supervised trainers; with 0 `checkpoint_steps` there are no checkpoints."""
    return {
        **quiet_options(work_dir, seed),
        "lr_scheduler_type": "cosine",
        "gradient_checkpointing": False,
        "save_strategy": "steps" if checkpoint_steps else "no",
        "save_steps": checkpoint_steps or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
    }


def train(trainer: Any, work_dir: Path, desc: str) -> list[dict[str, float]]:
    """Trains, from the newest complete checkpoint if there is one, and returns the logged loss rows."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainer_progress(desc))
    with disk_errors(str(work_dir)):
        trainer.train(resume_from_checkpoint=latest_checkpoint(work_dir))
    return [row for row in trainer.state.log_history if "loss" in row]


def checkpoints(folder: str | os.PathLike[str], state_name: str = "trainer_state.json") -> dict[int, Path]:
    """Returns the complete checkpoints in a folder by their step.

    Args:
        folder: the folder of a training; it need not exist.
        state_name: the JSON file that is written last, so that a checkpoint with all of it is complete.
    """
    path = Path(folder)
    return {
        int(match[1]): checkpoint
        for checkpoint in (path.iterdir() if path.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)) and _is_json(checkpoint / state_name)
    }


def latest_checkpoint(folder: str | os.PathLike[str], state_name: str = "trainer_state.json") -> str | None:
    """Returns the newest complete checkpoint in a folder, or None; see `checkpoints`."""
    complete = checkpoints(folder, state_name)
    return str(complete[max(complete)]) if complete else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def merged(trainer: Any, work_dir: Path, load: Callable[[str], Any]) -> Any:
    """Returns the trained model as a plain one, with its adapters merged if it has any.

    Args:
        trainer: the trainer, after training.
        work_dir: a folder that all processes share; sharded weights are gathered in it.
        load: loads the model from a folder.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        folder = work_dir / "whole"
        trainer.save_model(str(folder))  # gathers the parts; the first process writes
        distributed.wait()
        whole = load(str(folder))
        distributed.wait()
        if distributed.is_main():
            remove(folder)
        return whole
    return trainer.model.merge_and_unload() if hasattr(trainer.model, "merge_and_unload") else trainer.model
