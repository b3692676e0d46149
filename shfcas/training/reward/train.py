"""Reward models: Bradley-Terry training on pairwise preferences, alone, as an ensemble, or averaged."""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shfcas.data.preferences import Preference
from shfcas.models.loading import load_reward_model, save_model
from shfcas.rewards.scorers import ENSEMBLE_FILE, ensemble_members, load_scorer, reward_max_length
from shfcas.training.reward.config import RefineConfig, RewardModelConfig
from shfcas.training.reward.data import encode_pairs
from shfcas.training.reward.member import reports, train_member
from shfcas.utils import distributed
from shfcas.utils.config import fingerprint
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors, publish, read_json, remove, write_json
from shfcas.utils.seeds import derive_seed

__all__ = ["RefineConfig", "RewardModelConfig", "train_reward_model"]

logger = logging.getLogger(__name__)


def train_reward_model(
    model_name: str,
    preferences: Sequence[Preference],
    *,
    settings: RewardModelConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    held_out: Sequence[Preference] = (),
) -> dict[str, Any]:
    """Trains a reward or cost model, or several, on the preferences and saves them in `output`.

    Args:
        model_name: a model to refine, or a backbone that gets a fresh head; an ensemble is refined member by member.
        preferences: the training pairs (repeat a pair to give it weight).
        settings: see `RewardModelConfig`.
        output: the folder of the trained model, or of the ensemble.
        work_dir: checkpoints, and the finished members of an ensemble.
        seed: seed of the head, the order of the pairs and adapters.
        held_out: pairs to measure on, which are not trained on.

    Returns:
        Metrics: how many pairs were used and how many were too long; reports on the training pairs (`train`) and on the
        held-out pairs before (`before`) and after training (`held_out`), see `shfcas.rewards.metrics.pair_report`; the
        loss of every step and the curve of the held-out loss. For a cost model, rewards are negated costs. For an
        ensemble, `before` is that of the first member, and `members` has the metrics of each.

    Raises:
        UserError: there is nothing to train on, the model does not fit, or training diverged.
    """
    if not preferences:
        raise UserError("no preferences to train the reward model on")
    starts = ensemble_members(model_name) or [model_name] * settings.ensemble_size
    if len(starts) != settings.ensemble_size:
        raise UserError(
            f"{model_name} is an ensemble of {len(starts)}, and ensemble_size is {settings.ensemble_size}; "
            "make them equal, or start from a single model"
        )
    distributed.start()
    if distributed.is_main():
        _claim(work_dir, [model_name, vars(settings), [vars(p) for p in (*preferences, *held_out)], seed])
    distributed.wait()
    if settings.ensemble_size == 1:
        return train_member(
            model_name,
            preferences,
            held_out=held_out,
            settings=settings,
            output=output,
            work_dir=work_dir,
            seed=seed,
            head_seed=seed,
        )
    folders = [
        _trained_once(
            work_dir, number, start=start, preferences=preferences, held_out=held_out, settings=settings, seed=seed
        )
        for number, start in enumerate(starts)
    ]
    model, tokenizer = load_reward_model(str(folders[0]), torch.float32)
    max_length = settings.max_length or reward_max_length(model, tokenizer)
    if distributed.is_main():
        _join(output, folders, settings=settings, model=model, tokenizer=tokenizer)
    distributed.wait()
    scorer = load_scorer(str(output))
    members = [read_json(folder / "training.json") for folder in folders]
    _, used = encode_pairs(preferences, tokenizer, max_length, too_long=settings.too_long)
    _, measured = encode_pairs(held_out, tokenizer, max_length, too_long=settings.too_long)
    return {**members[0], **reports(scorer, used, measured, members[0]["before"]), "members": members}


def _join(output: Path, folders: Sequence[Path], *, settings: RewardModelConfig, model: Any, tokenizer: Any) -> None:
    """Writes the ensemble, or the one model that is the mean of its members; `model` is the first."""
    if settings.average_weights:
        save_model(output, averaged(model, folders[1:]), tokenizer)
        return
    for folder in folders:
        shutil.copytree(folder, output / folder.name, copy_function=_link)
    write_json(output / ENSEMBLE_FILE, {"members": [folder.name for folder in folders]})


def averaged(model: Any, others: Sequence[Path]) -> Any:
    """Returns the model with the mean of its and the others' weights (WARM, Ramé et al. 2024, arXiv 2401.12187).

    Only models that started from the same weights, head included, may be averaged.
    """
    mean = model.state_dict()
    for count, folder in enumerate(others, start=2):
        weights = load_reward_model(str(folder), torch.float32)[0].state_dict()
        for name, value in mean.items():
            if value.is_floating_point():
                value += (weights[name] - value) / count
    return model


def _trained_once(
    work_dir: Path,
    number: int,
    *,
    start: str,
    preferences: Sequence[Preference],
    held_out: Sequence[Preference],
    settings: RewardModelConfig,
    seed: int,
) -> Path:
    """Returns the folder of a member, which is trained first if it is missing."""
    folder, checkpoints = work_dir / f"member-{number}", work_dir / f".member-{number}.work"
    if not folder.exists():
        logger.info("member %d of %d", number + 1, settings.ensemble_size)
        partial = work_dir / f".member-{number}.partial"
        distributed.wait()  # until all have seen that it is missing
        if distributed.is_main():
            remove(partial)
        own = derive_seed(seed, folder.name)
        head = seed if settings.average_weights else own
        result = train_member(
            start,
            preferences,
            held_out=held_out,
            settings=settings,
            output=partial,
            work_dir=checkpoints,
            seed=own,
            head_seed=head,
        )
        if distributed.is_main():
            with disk_errors(str(folder)):
                write_json(partial / "training.json", result)
                publish(partial, folder)
    if distributed.is_main():
        remove(checkpoints)
    distributed.wait()
    return folder


def _claim(work_dir: Path, inputs: list[Any]) -> None:
    """Refuses to resume from the checkpoints of another training."""
    mark, begun = work_dir / "inputs.json", [*work_dir.glob("checkpoint-*"), *work_dir.glob("*member-*")]
    with disk_errors(str(work_dir)):
        if begun and mark.exists() and read_json(mark) != fingerprint(inputs):
            raise UserError(
                f"{work_dir} holds checkpoints of another training (other pairs, settings or seed); "
                "delete it to start over, or finish that training"
            )
        write_json(mark, fingerprint(inputs))


def _link(source: str, target: str) -> None:
    """Links a file to a second name, to store it once; copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
