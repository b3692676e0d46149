"""Train or refine a reward or cost model on preferences (TRL's RewardTrainer, Bradley-Terry loss)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.cli._cards import reward_card
from shfcas.data.formats import PairColumns
from shfcas.data.preferences import read_preferences
from shfcas.hub.upload import HubOptions
from shfcas.training.output import trained_folder
from shfcas.training.reward.config import RewardModelConfig
from shfcas.training.reward.refine import train_on_groups
from shfcas.utils import distributed
from shfcas.utils.config import option


@dataclass
class _Files(HubOptions, PairColumns):
    model: str = option("", "model to refine, or backbone that gets a new head", common=True)
    preferences: list[str] = option(list, "preferences, comma-separated, the most trusted last", common=True)
    eval_preferences: str | None = option(
        None, "preferences to measure on, not trained on (none: held_out of the others)", common=True
    )
    output: str = option("reward-model", "folder of the trained model", common=True)
    seed: int = option(0, "seed of everything random", common=True)


@dataclass
class Config(RewardModelConfig, _Files):
    """`shfcas train-reward`."""


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the model, and measures it on held-out pairs."""
    from shfcas.report.training import write_training_report

    config.check_hub()
    groups = [read_preferences(path, config.columns()) for path in config.preferences]
    eval_preferences = None
    if config.eval_preferences:
        eval_preferences = read_preferences(config.eval_preferences, config.columns())
    with trained_folder(config.output) as (partial, work_dir):
        result = train_on_groups(
            config.model,
            groups,
            settings=config,
            output=partial,
            work_dir=work_dir,
            seed=config.seed,
            split_seed=config.seed,
            eval_preferences=eval_preferences,
        )
        if distributed.is_main():
            write_training_report(partial, result)
    config.push(reward_card(config, result), Path(config.output))
    return {**result, "output": config.output}


def text(result: dict[str, Any]) -> str:
    """Formats the metrics as text."""
    by_source = ", ".join(f"{source} {count}" for source, count in result["pairs_by_source"].items())
    lines = [f"pairs: {result['pairs']} ({by_source})"]
    if result["pairs_too_long"]:
        by_source = ", ".join(f"{source} {count}" for source, count in result["pairs_too_long_by_source"].items())
        lines.append(f"longer than max_length: {result['pairs_too_long']} ({by_source})")
    if result.get("members"):
        lines.append(f"models: {len(result['members'])}")
    lines.append(f"loss: {result['loss'][0]:z.4f} at first, {result['loss'][-1]:z.4f} at the end")
    if result["best_step"] is not None:
        lines.append(f"best model: step {result['best_step']}")
    lines.append(f"accuracy on training pairs: {_share(result['train']['accuracy'])}")
    held_out = result["held_out"]
    if held_out:
        lines.append(f"accuracy on held-out pairs: {_share(held_out['accuracy'])}")
        lines.append(f"  before training: {_share(result['before']['accuracy'])}")
        for name, groups in (("", held_out["by_source"]), ("round ", held_out["by_round"])):
            if len(groups) > 1:
                lines += [f"  {name}{group}: {_share(found)}" for group, found in groups.items()]
        if "safety_accuracy" in held_out:
            lines.append(f"  safe and unsafe told apart: {_share(held_out['safety_accuracy'])}")
        lines.append(f"  ties: {held_out['ties']}, each counted half")
        lines.append(f"held-out loss: {held_out['loss']:z.4f}, before {result['before']['loss']:z.4f}")
        lines.append(f"expected calibration error: {held_out['calibration']['expected_error']:z.3f}")
    else:
        lines.append("no pair was held out, so the accuracy on new prompts is unknown")
    return "\n".join([*lines, f"output: {result['output']}"])


def _share(found: dict[str, Any]) -> str:
    return f"{found['mean']:z.3f} [{found['low']:z.3f}, {found['high']:z.3f}] of {found['count']}"
