"""Functions that all training shares: options of quiet trainers, resumable checkpoints, saved policies."""

import copy
import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from shfcas.models.adapters import LowRank, base_name, fold_attached
from shfcas.models.loading import load_policy, save_model
from shfcas.models.resolve import adapter_base, resolve
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


def on_one_device(args: Any) -> Any:
    """Returns a Trainer's arguments, kept to one device per process.

    Where several GPUs are visible to a process that no launcher started, transformers would use nn.DataParallel, which
    multiplies batch sizes by their number.
    """
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


def supervised_options(work_dir: Path, seed: int, checkpoint_steps: int) -> dict[str, Any]:
    """Returns arguments for TRL's supervised trainers; with 0 `checkpoint_steps` there are no checkpoints."""
    return {
        **quiet_options(work_dir, seed),
        "lr_scheduler_type": "cosine",
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


def load_reference(name: str | None, dtype: Any) -> Any:
    """Loads the frozen model that a policy in training is held to; None, the policy to start from, loads nothing."""
    return None if name is None else load_policy(name, dtype=dtype)[0].requires_grad_(False)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def merged(trainer: Any, work_dir: Path, load: Callable[[str], Any], model: Any = None) -> Any:
    """Returns the trained model as a plain one, with its adapters merged if it has any.

    Args:
        trainer: the trainer, after training.
        work_dir: a folder that all processes share; sharded weights are gathered in it.
        load: loads the model from a folder.
        model: the trained model; None is the trainer's.
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
    # Merging rounds to the precision of the weights, which would lose small updates.
    model = trainer.model if model is None else model
    return fold_attached(model.float().merge_and_unload()) if hasattr(model, "merge_and_unload") else model


def save_policy(
    trainer: Any,
    start: str,
    output: Path,
    *,
    work_dir: Path,
    tokenizer: Any,
    model: Any = None,
    end_ids: Collection[int] = (),
) -> None:
    """Saves a trained policy and its tokenizer: as one adapter on its base model, or with all weights.

    Args:
        trainer: the trainer, after training.
        start: the policy that training started from. If it was an adapter itself, the two are joined.
        output: the folder of the new policy.
        work_dir: a folder that all processes share; sharded weights are gathered in it.
        tokenizer: the policy's.
        model: the trained policy; None is the trainer's model.
        end_ids: tokens that end an answer; none keeps those of the generation configuration.
    """
    model = trainer.model if model is None else model
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if end_ids:
        plain.generation_config.eos_token_id = sorted(end_ids)  # other programs end answers at these tokens too
    adapter, config = _trained_adapter(trainer, model, work_dir)
    folder = resolve(start)
    if adapter is not None and adapter_base(folder) is not None:
        earlier = LowRank.read(folder)
        adapter, config = (None if earlier is None else earlier.joined(adapter)), None
    if adapter is None:
        whole = merged(trainer, work_dir, lambda folder: load_policy(folder, dtype=torch.float32)[0], model)
        whole.generation_config = plain.generation_config
    if not distributed.is_main():
        return
    if adapter is None:
        save_model(output, whole, tokenizer)
        return
    adapter.save(output, base_name(start), config)
    with disk_errors(str(output)):
        plain.generation_config.save_pretrained(output)
        tokenizer.save_pretrained(output)


def _trained_adapter(trainer: Any, model: Any, work_dir: Path) -> tuple[LowRank | None, Any]:
    """Returns the adapter that was trained and PEFT's configuration of it; None if there is none, or no plain one."""
    if not hasattr(model, "peft_config"):
        return None, None
    from peft import get_peft_model_state_dict

    config = copy.deepcopy(model.peft_config["default"])
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return LowRank.of(config.to_dict(), get_peft_model_state_dict(model, save_embedding_layers=False)), config
    folder = work_dir / "adapter"
    trainer.save_model(str(folder))  # gathers the parts; the first process writes
    distributed.wait()
    adapter = LowRank.read(folder)
    distributed.wait()
    if distributed.is_main():
        remove(folder)
    return adapter, config
