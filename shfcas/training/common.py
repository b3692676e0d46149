"""What every training stage shares: quiet trainers, resumable checkpoints, early errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shfcas.utils import distributed
from shfcas.utils.files import disk_errors, remove
from shfcas.utils.progress import trainer_progress


def quiet_options(work_dir: Path, seed: int) -> dict[str, Any]:
    """Arguments for a transformers Trainer of any kind: one seed, no trackers, our own progress bar."""
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
    """Arguments for TRL's supervised trainers; checkpoints only when asked for."""
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
    """Trains, from the newest complete checkpoint where there is one; returns the logged loss rows."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainer_progress(desc))
    with disk_errors(str(work_dir)):
        trainer.train(resume_from_checkpoint=newest_checkpoint(work_dir))
    return [row for row in trainer.state.log_history if "loss" in row]


def newest_checkpoint(work_dir: Path) -> str | None:
    """The newest checkpoint that was written to its end: the Trainer writes its state file last, and all of it."""
    complete = [p for p in work_dir.glob("checkpoint-*") if _is_json(p / "trainer_state.json")]
    return str(max(complete, key=lambda p: int(p.name.rpartition("-")[2]))) if complete else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def merged(trainer: Any, work_dir: Path, load: Callable[[str], Any]) -> Any:
    """The trained model as a plain one, its adapters merged where it has any.

    Args:
        trainer: has trained it.
        work_dir: a shared folder, for what is gathered where each process holds a part of the weights.
        load: of the model, from a folder.
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
