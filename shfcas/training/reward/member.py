"""One reward or cost model, from pairs to a saved folder; an ensemble consists of several."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shfcas.data.chat import answer_suffix_ids
from shfcas.data.preferences import Preference
from shfcas.models.loading import has_trained_head, load_reward_model, save_model
from shfcas.models.resolve import is_cost_model
from shfcas.rewards.metrics import pair_report, pair_rewards
from shfcas.rewards.scorers import ModelScorer, RewardScorer, accepted_inputs, negated, reward_max_length
from shfcas.training.common import latest_checkpoint, merged, on_one_device, supervised_options, train
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.data import encode_pairs
from shfcas.utils import distributed
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json
from shfcas.utils.statistics import wilson_interval

logger = logging.getLogger(__name__)


def train_member(
    model_name: str,
    preferences: Sequence[Preference],
    *,
    held_out: Sequence[Preference],
    settings: RewardModelConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    head_seed: int,
) -> dict[str, Any]:
    """Trains one model and saves it in `output`; see `train_reward_model`.

    Args:
        model_name: the model to start from.
        preferences: training pairs.
        held_out: pairs to measure on.
        settings: see `RewardModelConfig`.
        output: the folder of the trained model.
        work_dir: checkpoints.
        seed: seed of the order of the pairs and of adapters.
        head_seed: seed of a fresh head.
    """
    from datasets import Dataset
    from transformers import set_seed

    distributed.start()
    set_seed(head_seed)
    _check_sign(model_name, settings)
    model, tokenizer = load_reward_model(model_name, settings.lora.base_dtype)
    max_length = settings.max_length or reward_max_length(model, tokenizer)
    objective, on_long = settings.objective, settings.too_long
    counts, held_out_counts = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    pairs, used = encode_pairs(preferences, tokenizer, max_length, objective, too_long=on_long, counts=counts)
    held_out_pairs, measured = encode_pairs(
        held_out, tokenizer, max_length, objective, too_long=on_long, counts=held_out_counts
    )
    too_long = Counter({source: count for (why, source), count in counts.items() if why == "too_long"})
    refused = counts.total() - too_long.total()
    if not pairs:
        raise UserError(
            f"none of {len(preferences)} preference pairs can be trained on: {too_long.total()} are longer than "
            f"max_length {max_length}, and the chat template refuses {refused}"
        )
    if too_long:
        logger.warning(
            "%d of %d pairs are longer than %d tokens and %s (%s)",
            too_long.total(),
            len(preferences),
            max_length,
            "were left out" if on_long == "floor" else "lose the beginning of their prompt",
            ", ".join(f"{source}: {count}" for source, count in sorted(too_long.items())),
        )
    if refused:
        logger.warning("%d of %d pairs were left out: the chat template refuses them", refused, len(preferences))
    if settings.objective == "cost":
        _warn_of_safety(used)
    before = _report(_scorer(model, tokenizer, max_length, settings), measured, f"{model_name} is broken")
    trainer = _trainer(
        settings,
        bool(measured),
        work_dir=work_dir,
        seed=seed,
        max_length=max_length,
        token_types="token_type_ids" in accepted_inputs(model, [{"input_ids": [0], "token_type_ids": [1]}]),
        model=model,
        train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(held_out_pairs) if measured else None,
        processing_class=tokenizer,
        peft_config=settings.lora.peft_config("SEQ_CLS"),
    )
    history = train(trainer, work_dir, "reward model")
    trained = merged(trainer, work_dir, lambda folder: load_reward_model(folder, torch.float32)[0]).eval()
    scorer = _scorer(trained, tokenizer, max_length, settings)
    found = reports(scorer, used, measured, before)
    trained.config.shfcas_cost_model = settings.objective == "cost"
    trained.config.shfcas_ending = answer_suffix_ids(tokenizer, used[0].prompt)  # preflight compares
    if distributed.is_main():
        save_model(output, trained, tokenizer)
    distributed.wait()
    curve = [{"step": row["step"], "loss": row["eval_loss"]} for row in trainer.state.log_history if "eval_loss" in row]
    _warn_of_overfitting(curve, settings)
    return {
        "pairs": len(pairs),
        "pairs_by_source": dict(Counter(p.source for p in used)),
        "pairs_too_long": too_long.total(),
        "pairs_too_long_by_source": dict(too_long),
        "pairs_refused": refused,
        "held_out_pairs": len(measured),
        "held_out_too_long": sum(count for (why, _), count in held_out_counts.items() if why == "too_long"),
        **found,
        "held_out_loss": curve,
        "best_step": trainer.state.best_global_step if settings.early_stopping_patience and curve else None,
        "loss": [row["loss"] for row in history],
    }


def reports(
    scorer: RewardScorer, used: Sequence[Preference], measured: Sequence[Preference], before: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns the reports on training and held-out pairs, with their accuracies again at the top level."""
    # A pair repeated for its weight counts once; a soft label is no verdict to be right about.
    distinct = list({id(p): p for p in used if p.probability is None}.values())
    train, held_out = _report(scorer, distinct), _report(scorer, measured)
    return {
        "train_accuracy": train["accuracy"]["mean"] if train else None,
        "held_out_accuracy": held_out["accuracy"]["mean"] if held_out else None,
        "train": train,
        "before": before,
        "held_out": held_out,
    }


def _trainer(
    settings: RewardModelConfig,
    measured: bool,
    *,
    work_dir: Path,
    seed: int,
    max_length: int,
    token_types: bool,
    **arguments: Any,
) -> Any:
    from transformers import EarlyStoppingCallback
    from trl import RewardConfig

    from shfcas.training.reward.pair_trainer import PairCollator, PairTrainer

    options = supervised_options(work_dir, seed, settings.checkpoint_steps)
    if measured:
        options.update(eval_strategy="steps", eval_steps=settings.eval_steps, per_device_eval_batch_size=64)
    elif settings.early_stopping_patience:
        logger.warning("no pair is held out, so nothing can say when to stop early; all epochs are trained")
    stop_early = measured and settings.early_stopping_patience > 0
    if stop_early:
        options.update(
            save_strategy="steps",
            save_steps=settings.eval_steps,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            restore_callback_states_from_checkpoint=True,  # or a resumed run would restart its patience
        )
    trainer = PairTrainer(
        args=on_one_device(
            RewardConfig(
                num_train_epochs=settings.num_train_epochs,
                learning_rate=settings.peak_learning_rate,
                **settings.step_options("batch_size / gradient_accumulation_steps"),
                max_length=max_length,
                center_rewards_coefficient=settings.centering,
                remove_unused_columns=False,  # TRL knows no column of probabilities, signs or token types
                **options,
            )
        ),
        data_collator=PairCollator(arguments["processing_class"].pad_token_id, token_types=token_types),
        **arguments,
    )
    if stop_early:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
        if _has_stopped(work_dir, settings.early_stopping_patience):
            trainer.args.num_train_epochs = 0  # only the best model is still to be loaded
    return trainer


def _has_stopped(work_dir: Path, patience: int) -> bool:
    """Whether training stopped early at the newest checkpoint: the trainer itself would continue from it."""
    checkpoint = latest_checkpoint(work_dir)
    if checkpoint is None:
        return False
    callbacks = read_json(Path(checkpoint) / "trainer_state.json")["stateful_callbacks"]
    stopping = callbacks.get("EarlyStoppingCallback", {"attributes": {}})
    return stopping["attributes"].get("early_stopping_patience_counter", 0) >= patience


def _scorer(model: Any, tokenizer: Any, max_length: int, settings: RewardModelConfig) -> RewardScorer:
    on_long = "error" if settings.too_long == "error" else "cut"
    scorer = ModelScorer(model, tokenizer, max_length=max_length, too_long=on_long)
    return negated(scorer) if settings.objective == "cost" else scorer


def _report(
    scorer: RewardScorer, preferences: Sequence[Preference], why: str = "training diverged; lower the learning rate"
) -> dict[str, Any] | None:
    """Returns the report about a model on pairs; None without pairs."""
    if not preferences:
        return None
    pairs = distributed.gather([*zip(*pair_rewards(scorer, distributed.share(preferences)), strict=True)])
    chosen, rejected = ([pair[side] for pair in pairs] for side in (0, 1))
    if not all(map(math.isfinite, (*chosen, *rejected))):
        raise UserError(f"the reward model's scores are not numbers: {why}")
    report = pair_report(preferences, chosen, rejected)
    correct = [
        (reward > 0) == safe
        for rewards, name in ((chosen, "chosen_safe"), (rejected, "rejected_safe"))
        for reward, p in zip(rewards, preferences, strict=True)
        if (safe := getattr(p, name)) is not None
    ]
    if correct:
        report["safety_accuracy"] = wilson_interval(sum(correct), len(correct))
    return report


def _check_sign(model_name: str, settings: RewardModelConfig) -> None:
    """Refuses to refine a cost model into a reward model; warns of the reverse."""
    if is_cost_model(model_name) and settings.objective != "cost":
        raise UserError(f"{model_name} is a cost model (lower is better); refine it with the objective cost")
    if settings.objective == "cost" and has_trained_head(model_name) and not is_cost_model(model_name):
        logger.warning(
            "%s is not marked as a cost model; if higher is better there, training has to turn it round", model_name
        )


def _warn_of_safety(preferences: Sequence[Preference]) -> None:
    known = sum(p.chosen_safe is not None or p.rejected_safe is not None for p in preferences)
    if not known:
        logger.warning("no pair says which answer is safe, so 0 will not lie between safe and unsafe costs")
    contradictions = sum(p.chosen_safe is False and p.rejected_safe is True for p in preferences)
    if contradictions:
        logger.warning(
            "%d of %d pairs prefer an unsafe answer to a safe one; for a cost model the safer answer is the chosen one",
            contradictions,
            len(preferences),
        )


def _warn_of_overfitting(curve: list[dict[str, Any]], settings: RewardModelConfig) -> None:
    if not curve or settings.early_stopping_patience:
        return
    best = min(curve, key=lambda row: row["loss"])
    if best["loss"] < curve[-1]["loss"]:
        logger.warning(
            "the held-out loss was lowest at step %d (%.4f) and %.4f at the end; "
            "early_stopping_patience would have kept the best model",
            best["step"],
            best["loss"],
            curve[-1]["loss"],
        )
