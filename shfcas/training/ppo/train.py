"""The policy stage of a round: PPO from one policy to the next."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shfcas.data.messages import prompt_key
from shfcas.models.loading import load_policy
from shfcas.rewards.scorers import RewardCallable
from shfcas.training.common import latest_checkpoint, load_reference, quiet_options, save_policy
from shfcas.training.ppo.checkpoint import STATE_NAME
from shfcas.training.ppo.options import PPOStageConfig
from shfcas.utils import distributed
from shfcas.utils.config import shared
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors
from shfcas.utils.seeds import derive_seed

# Folders of the trainer that outlive its checkpoints: answers, and tensorboard's files.
KEPT = ("completions", "runs")


def train_ppo(
    policy: str,
    prompts: Sequence[dict[str, Any]],
    *,
    reward: RewardCallable,
    settings: PPOStageConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    metrics: Mapping[str, RewardCallable] | None = None,
    chat_template: str | None = None,
    reference: str | None = None,
    demonstrations: Sequence[dict[str, Any]] = (),
    cost: RewardCallable | None = None,
) -> list[dict[str, Any]]:
    """Trains a policy with PPO and saves it in `output`.

    Where completions are logged or tensorboard is reported to, their folders `completions` and `runs` lie in
    `output` as well.

    Args:
        policy: the policy to start from.
        prompts: rows with `prompt`; further columns reach the reward as TRL passes them.
        reward: rewards of answers, in TRL's shape.
        settings: see `PPOStageConfig`.
        output: the folder of the new policy.
        work_dir: checkpoints; training resumes from the newest complete one.
        seed: seed of the adapters, the order of prompts and the sampling.
        metrics: further callables of that shape, measured on every rollout and not trained on.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.
        reference: the reference of the KL penalty; None is the policy to start from.
        demonstrations: rows with `prompt` and `completion`, for `ptx_coef`.
        cost: what is kept at `cost_limit`, of the reward's shape; `settings.cost` is only its name.

    Returns:
        One row of metrics per rollout, and with `eval_rollouts` one more for the evaluation at the end.

    Raises:
        UserError: settings, prompts or rewards do not fit; the message names which.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback

    from shfcas.training.ppo.trainer import PPOConfig, PPOTrainer
    from shfcas.utils.progress import rollout_log, trainer_progress

    distributed.start()
    train_prompts, held_out = split_prompts(prompts, settings, seed)
    model, tokenizer = load_policy(policy, chat_template, settings.lora.base_dtype)
    held_to, reference_dtype = reference, settings.lora.base_dtype
    if settings.bf16_reference and settings.lora.r == 0:  # under adapters, the reference is the policy without them
        held_to, reference_dtype = reference or policy, torch.bfloat16
    try:
        trainer = PPOTrainer(
            model=model,
            args=PPOConfig(
                **shared(settings, PPOConfig)
                | quiet_options(work_dir, seed)
                | {
                    **settings.optimizer_options(),
                    "learning_rate": settings.peak_learning_rate,
                    "report_to": installed_trackers(settings.report_to or []),
                },
                per_device_train_batch_size=distributed.per_process(
                    "mini_batch_size / gradient_accumulation_steps",
                    settings.mini_batch_size // settings.gradient_accumulation_steps,
                ),
            ),
            train_dataset=Dataset.from_list(train_prompts),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            reward_funcs=reward,
            ref_model=load_reference(held_to, reference_dtype),
            value_model=settings.value_model,
            peft_config=settings.lora.peft_config(dropout=False),
            metric_funcs=dict(metrics or {}),
            demonstrations=demonstrations,
            cost_func=cost,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(trainer_progress("PPO"))
        trainer.add_callback(rollout_log("PPO", settings.num_rollouts))
        with disk_errors(str(work_dir)):
            trainer.train(resume_from_checkpoint=latest_checkpoint(work_dir, STATE_NAME))
    except UserError:
        raise
    except ValueError as error:  # the trainer's own checks of settings, prompts and rewards
        raise UserError(f"PPO: {error}") from error
    with disk_errors(str(output)):
        save_policy(trainer, policy, output, work_dir=work_dir, tokenizer=tokenizer, model=trainer.model.policy)
        for name in KEPT:
            if distributed.is_main() and (work_dir / name).is_dir():
                shutil.copytree(work_dir / name, output / name, dirs_exist_ok=True)
    # Sorted, because rows that come back from a checkpoint are.
    return [dict(sorted(row.items())) for row in trainer.state.log_history if "rollout" in row]


def installed_trackers(names: Sequence[str]) -> list[str]:
    """Returns the trackers, or "none"; raises a UserError for one that is not installed."""
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    trackers = [name.strip() for name in names]
    for name in trackers:
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to: there is no tracker {name}; install it with: pip install {name}")
    return trackers or ["none"]


def split_prompts(
    prompts: Sequence[dict[str, Any]], settings: PPOStageConfig, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divides prompts at random into those to train on and those to hold out; equal prompts stay together.

    Raises:
        UserError: one side would be empty.
    """
    if not settings.held_out:
        return list(prompts), []
    different = {prompt_key(row["prompt"]) for row in prompts}
    order = sorted(different, key=lambda prompt: (derive_seed("held-out", seed, prompt), prompt))
    count = round(settings.held_out * len(order))
    if not 0 < count < len(order):
        raise UserError(
            f"held_out: expected prompts on both sides, got {count} of {len(order)} different ones held out; "
            "change held_out, or add prompts"
        )
    aside = set(order[:count])
    held_out = [row for row in prompts if prompt_key(row["prompt"]) in aside]
    return [row for row in prompts if prompt_key(row["prompt"]) not in aside], held_out
