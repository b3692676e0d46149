"""Refinement of a reward model on several sets of preferences: hold out by prompt, merge, weight, train."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shfcas.data.messages import prompt_key
from shfcas.data.preferences import Preference, merge
from shfcas.training.reward.config import RefineConfig, RewardModelConfig
from shfcas.training.reward.data import held_out_prompts, replayed, split, weighted
from shfcas.training.reward.train import train_reward_model

logger = logging.getLogger(__name__)


def train_on_groups(
    model_name: str,
    groups: Sequence[Sequence[Preference]],
    *,
    settings: RewardModelConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    split_seed: int,
    eval_preferences: Sequence[Preference] | None = None,
) -> dict[str, Any]:
    """Trains a reward or cost model on several sets of preferences and saves it in `output`.

    Args:
        model_name: a model to refine, or a backbone that gets a fresh head.
        groups: sets of preferences in order of trust, the most trusted last, see `shfcas.data.preferences.merge`.
        settings: see `RewardModelConfig`.
        output: the folder of the trained model.
        work_dir: checkpoints.
        seed: seed of the training, see `train_reward_model`.
        split_seed: seed that draws the held-out prompts. All rounds of a run share it, so that a prompt held out in
            one round is never trained on in another.
        eval_preferences: pairs to measure on in place of a share of the prompts; all groups are then trained on.

    Returns:
        The metrics of `train_reward_model`.

    Raises:
        UserError: see `train_reward_model`.
    """
    pairs, held_out = train_and_held_out(groups, settings, split_seed=split_seed, eval_preferences=eval_preferences)
    if isinstance(settings, RefineConfig):
        pairs = replayed(pairs, settings.replay, seed)
    return train_reward_model(
        model_name, pairs, settings=settings, output=output, work_dir=work_dir, seed=seed, held_out=held_out
    )


def train_and_held_out(
    groups: Sequence[Sequence[Preference]],
    settings: RewardModelConfig,
    *,
    split_seed: int,
    eval_preferences: Sequence[Preference] | None = None,
) -> tuple[list[Preference], list[Preference]]:
    """Divides merged preferences into training pairs, new ones repeated by their weight, and held-out pairs.

    The prompts to hold out are drawn before merging. A prompt then keeps its side when a later label overrules its
    pair and so changes the round and source that the pair comes from.
    """
    merged = merge(*groups)
    if eval_preferences is None:
        unmerged = [preference for group in groups for preference in group]
        pairs, held_out = split(merged, held_out_prompts(unmerged, settings.held_out, split_seed))
        held_out = [p for p in held_out if p.probability is None]
        _warn_of_held_out_labels(merged, held_out)
    else:
        pairs, held_out = merged, list(eval_preferences)
        shared = len(split(held_out, {prompt_key(p.prompt) for p in pairs})[1])
        if shared:
            logger.warning("%d of %d eval_preferences have prompts that are trained on", shared, len(held_out))
    return weighted(pairs, settings.new_pair_weight), held_out


def _warn_of_held_out_labels(merged: Sequence[Preference], held_out: Sequence[Preference]) -> None:
    """Says how many of the labels that were asked for are only measured on."""
    asked, kept = (sum(p.round > 0 and p.probability is None for p in pairs) for pairs in (merged, held_out))
    if kept:
        logger.warning(
            "%d of %d labels of the rounds so far are measured on and not trained on; set reward.held_out to 0 to "
            "train on all",
            kept,
            asked,
        )
