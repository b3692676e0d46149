"""RLOO and GRPO as stages of a run: TRL's trainers, with the rollouts, rewards, metrics and checkpoints of our PPO."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shfcas.models.loading import load_policy, save_model
from shfcas.rewards.scorers import RewardCallable
from shfcas.training.common import merged, train
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
) -> list[dict[str, Any]]:
    """Trains a policy with RLOO or GRPO and saves it as a plain model (adapters merged) in `output`.

    Args:
        policy: the policy to start from; it is also the reference of the KL penalty.
        prompts: rows with `prompt`; further columns reach the reward as TRL passes them.
        reward: rewards of answers, in TRL's shape.
        settings: settings of RLOO or of GRPO, which choose the algorithm.
        output: the folder of the new policy.
        work_dir: checkpoints; training resumes from the newest complete one.
        seed: seed of the adapters, the order of prompts and the sampling.
        metrics: further callables of that shape, measured on every rollout and not trained on.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.

    Returns:
        One row of metrics per rollout, with the names that PPO uses.

    Raises:
        UserError: settings, prompts or rewards do not fit; the message names which.
    """
    settings.check()
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
        )
        with contextlib.suppress(KLGuard):  # the policy keeps its weights from before the update
            train(trainer, work_dir, name)
    except UserError:
        raise
    except ValueError as error:  # checks of the prompts and rewards
        raise UserError(f"{name}: {error}") from error
    with disk_errors(str(output)):
        save_model(output, merged(trainer, work_dir, lambda folder: load_policy(folder)[0]), tokenizer)
    # Sorted, because rows that come back from a checkpoint are.
    return [dict(sorted(row.items())) for row in trainer.state.log_history if "rollout" in row]
