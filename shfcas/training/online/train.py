"""RLOO and GRPO as stages of a run: TRL's trainers, with the rollouts, rewards, metrics and checkpoints of our PPO."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shfcas.models.loading import load_policy
from shfcas.rewards.scorers import RewardCallable
from shfcas.training.common import load_reference, save_policy, train
from shfcas.training.online.config import GRPOConfig, RLOOConfig
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors


def train_online(
    policy: str,
    prompts: Sequence[dict[str, Any]],
    *,
    reward: RewardCallable,
    settings: RLOOConfig | GRPOConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    metrics: Mapping[str, RewardCallable] | None = None,
    chat_template: str | None = None,
    reference: str | None = None,
) -> list[dict[str, Any]]:
    """Trains a policy with RLOO or GRPO and saves it in `output`.

    Args:
        policy: the policy to start from.
        prompts: rows with `prompt`; further columns reach the reward as TRL passes them.
        reward: rewards of answers, in TRL's shape.
        settings: settings of RLOO or of GRPO, which choose the algorithm.
        output: the folder of the new policy.
        work_dir: checkpoints; training resumes from the newest complete one.
        seed: seed of the adapters, the order of prompts and the sampling.
        metrics: further callables of that shape, measured on every rollout and not trained on.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.
        reference: the reference of the KL penalty; None is the policy to start from.

    Returns:
        One row of metrics per rollout, with the names that PPO uses.

    Raises:
        UserError: settings, prompts or rewards do not fit; the message names which.
    """
    from shfcas.training.online.trainer import KLGuard, make_trainer

    name = "GRPO" if isinstance(settings, GRPOConfig) else "RLOO"
    model, tokenizer = load_policy(policy, chat_template, settings.lora.base_dtype)
    try:
        trainer = make_trainer(
            model,
            tokenizer,
            prompts=prompts,
            reward=reward,
            settings=settings,
            work_dir=work_dir,
            seed=seed,
            metrics=dict(metrics or {}),
            reference=load_reference(reference, settings.lora.base_dtype) if settings.kl_coef else None,
        )
        with contextlib.suppress(KLGuard):  # the policy keeps its weights from before the update
            train(trainer, work_dir, name)
    except UserError:
        raise
    except ValueError as error:  # checks of the prompts and rewards
        raise UserError(f"{name}: {error}") from error
    with disk_errors(str(output)):
        save_policy(trainer, policy, output, work_dir=work_dir, tokenizer=tokenizer)
    # Sorted, because rows that come back from a checkpoint are.
    return [dict(sorted(row.items())) for row in trainer.state.log_history if "rollout" in row]
