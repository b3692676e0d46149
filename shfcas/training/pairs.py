"""DPO on pairs of token ids (Rafailov et al. 2023, arXiv 2305.18290), through TRL's trainer; for `dpo` and `rso`."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.rewards.scorers import RewardScorer
from shfcas.rewards.table import score_rows
from shfcas.training.common import load_reference, on_one_device, save_policy, supervised_options, train
from shfcas.training.lora import AdaptedRate
from shfcas.training.optimizer import SupervisedConfig
from shfcas.utils.config import option


class PairSettings(AdaptedRate, SupervisedConfig):
    """Settings that training on pairs needs, beside those of the loss."""

    num_train_epochs: float
    checkpoint_steps: int
    loss_type: str


def max_length_option() -> Any:
    """Returns the field `max_length`."""
    help_text = "maximum tokens of prompt and answer; a longer answer is an error (none: the policy's context)"
    return option(None, help_text, ge=1)


def candidates_row(
    reward: RewardScorer, candidates: Sequence[dict[str, Any]], metrics: Mapping[str, RewardScorer] | None
) -> tuple[dict[str, float], list[list[float]]]:
    """Returns a first row of a history, about the answers of a candidate table, and their rewards."""
    rewards = score_rows(reward, candidates)
    flat = np.concatenate(rewards)
    row = {
        "rollout": 0,
        "objective/scores": float(flat.mean()),
        "objective/scores_std": float(flat.std()),
        **{
            f"objective/{name}": float(np.concatenate(score_rows(metric, candidates)).mean())
            for name, metric in (metrics or {}).items()
        },
    }
    return row, rewards


def train_on_pairs(
    model: Any,
    tokenizer: Any,
    *,
    pairs: Sequence[dict[str, list[int]]],
    settings: PairSettings,
    beta: float,
    name: str,
    policy: str,
    output: Path,
    work_dir: Path,
    seed: int,
    reference: str | None,
) -> list[dict[str, Any]]:
    """Trains a policy on pairs and saves it in `output`.

    Args:
        model: the policy, loaded.
        tokenizer: its tokenizer.
        pairs: `prompt_ids`, `chosen_ids` and `rejected_ids` of each pair; at least one.
        settings: settings of the training.
        beta: scale of the log-ratios in the loss.
        name: name of the algorithm, for the progress bar; in lower case that of its section.
        policy: name of the policy.
        output: the folder of the new policy.
        work_dir: checkpoints; training resumes from the newest complete one.
        seed: seed of the adapters and the order of the pairs.
        reference: the reference of the log-ratios; None is the policy.

    Returns:
        TRL's rows, one per step.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    from shfcas.training.ppo.value_head import disable_dropout

    class PairTrainer(DPOTrainer):
        """DPO on pairs of token ids; TRL would end every answer, and cut long ones."""

        def _prepare_dataset(self, dataset: Any, *unused: Any) -> Any:
            return dataset

        def _send_telemetry(self) -> None:
            """Sends nothing."""

    ref_model = load_reference(reference, settings.lora.base_dtype)
    if ref_model is None and settings.lora.r == 0:
        ref_model = copy.deepcopy(model).requires_grad_(False)
    set_seed(seed)
    disable_dropout(model)
    trainer = PairTrainer(
        model=model,
        ref_model=ref_model,
        args=on_one_device(
            DPOConfig(
                loss_type=[settings.loss_type],
                beta=beta,
                num_train_epochs=settings.num_train_epochs,
                learning_rate=settings.peak_learning_rate,
                **settings.step_options(f"{name.lower()}.batch_size / gradient_accumulation_steps"),
                max_length=None,
                **supervised_options(work_dir, seed, settings.checkpoint_steps),
            )
        ),
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=tokenizer,
        peft_config=settings.lora.peft_config(dropout=False),
    )
    history = train(trainer, work_dir, name)
    save_policy(trainer, policy, output, work_dir=work_dir, tokenizer=tokenizer)
    for row in history:  # TRL restarts its count of tokens when it is resumed
        row.pop("num_tokens", None)
    return history
