"""Reward models: Bradley-Terry training on pairwise preferences, through TRL's RewardTrainer."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.chat import encode_answer
from shfcas.config import option
from shfcas.errors import UserError
from shfcas.models import load_reward_model, save_model
from shfcas.preferences import Preference
from shfcas.scoring import ModelScorer, pair_accuracy, reward_max_length
from shfcas.training.common import merged, supervised_options, train
from shfcas.training.lora import LoraSettings

logger = logging.getLogger(__name__)


@dataclass
class RewardSettings:
    """The reward-model stage; epochs, batch and weight decay as the authors of SHF-CAS set them."""

    start: str = option(
        "current", "refine the current reward model, or the untrained backbone", ("current", "backbone")
    )
    num_train_epochs: float = option(2.0, "passes over the preferences")
    learning_rate: float = option(2e-5, "peak learning rate (cosine)")
    batch_size: int = option(4, "pairs a step")
    weight_decay: float = option(0.1, "weight decay")
    max_length: int | None = option(None, "tokens of prompt and answer (none: what the model can see)")
    new_pair_weight: int = option(1, "how often each newly labelled pair is repeated among the original ones")
    centering: float | None = option(None, "coefficient that keeps the mean reward near zero (none: off)")
    checkpoint_steps: int = option(0, "keep a resumable checkpoint every so many steps (0: none)")
    lora: LoraSettings = option(lambda: LoraSettings(r=0), "adapters (r = 0: all weights are trained)")


def encode_pairs(
    preferences: Sequence[Preference], tokenizer: Any, max_length: int
) -> tuple[list[dict[str, Any]], list[Preference]]:
    """Token ids of both answers of every pair that is short enough to be used, and those pairs."""
    with_margin = all(p.margin is not None for p in preferences)
    encoded, used = [], []
    for p in preferences:
        try:
            row: dict[str, Any] = {
                "chosen_ids": encode_answer(tokenizer, p.prompt, p.chosen, max_length),
                "rejected_ids": encode_answer(tokenizer, p.prompt, p.rejected, max_length),
            }
        except UserError:
            continue
        if with_margin:
            row["margin"] = p.margin
        encoded.append(row)
        used.append(p)
    return encoded, used


def train_reward_model(
    model_name: str,
    preferences: Sequence[Preference],
    settings: RewardSettings,
    output: Path,
    work_dir: Path,
    seed: int,
    held_out: Sequence[Preference] = (),
) -> dict[str, Any]:
    """Trains a reward model on the preferences and saves it, with its tokenizer, in `output`.

    Args:
        model_name: a reward model to refine, or a backbone that gets a fresh head.
        preferences: the training pairs (repeat a pair to give it weight).
        settings: see `RewardSettings`.
        output: the folder of the trained model.
        work_dir: checkpoints.
        seed: of the head, the order of the pairs and dropout.
        held_out: pairs that are only used to measure the accuracy afterwards.

    Returns:
        Metrics: number of pairs, pairs left out as too long, loss rows, accuracy on training and held-out pairs
        (those that are short enough).
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer

    if not preferences:
        raise UserError("no preferences to train the reward model on")
    set_seed(seed)
    model, tokenizer = load_reward_model(model_name)
    max_length = settings.max_length or reward_max_length(model, tokenizer)
    pairs, used = encode_pairs(preferences, tokenizer, max_length)
    _, measured = encode_pairs(held_out, tokenizer, max_length)
    too_long = len(preferences) - len(used)
    if not pairs:
        raise UserError(f"all {too_long} preference pairs are longer than max_length {max_length}; raise it")
    if too_long:
        logger.warning(
            "%d of %d pairs are longer than %d tokens and were left out",
            too_long,
            len(preferences),
            max_length,
        )
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            num_train_epochs=settings.num_train_epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            weight_decay=settings.weight_decay,
            max_length=max_length,
            center_rewards_coefficient=settings.centering,
            **supervised_options(work_dir, seed, settings.checkpoint_steps),
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=settings.lora.peft_config("SEQ_CLS"),
    )
    history = train(trainer, work_dir, "reward model")
    trained = merged(trainer).eval()
    scorer = ModelScorer(trained, tokenizer, max_length=max_length)
    save_model(output, trained, tokenizer)
    return {
        "pairs": len(pairs),
        "pairs_too_long": too_long,
        "train_accuracy": pair_accuracy(scorer, used),
        "held_out_accuracy": pair_accuracy(scorer, measured) if measured else None,
        "loss": [row["loss"] for row in history],
    }
