"""The policy stage of a round: PPO from one policy to the next, with settings of our own defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.config import option
from shfcas.errors import UserError
from shfcas.files import disk_errors
from shfcas.models import load_policy
from shfcas.scoring import RewardCallable
from shfcas.training.common import quiet_options
from shfcas.training.lora import LoraSettings


@dataclass
class PPOSettings:
    """PPO of the policy against the reward model; what is not named here keeps PPOConfig's default."""

    num_rollouts: int = option(50, "rollout phases")
    rollout_batch_size: int = option(64, "prompts a rollout, each answered once")
    mini_batch_size: int = option(16, "answers an optimizer step")
    generation_batch_size: int = option(64, "sequences generated or scored at once")
    num_ppo_epochs: int = option(4, "passes over each rollout (Stiennon et al. 2020)")
    learning_rate: float = option(1e-5, "peak learning rate")
    lr_scheduler_type: str = option("linear", "learning-rate schedule", ("linear", "constant", "cosine"))
    max_prompt_length: int = option(512, "longer prompts are an error")
    max_completion_length: int = option(128, "an answer ends here if it has not ended by itself")
    temperature: float = option(1.0, "sampling temperature; log-probabilities are taken at the same one")
    kl_coef: float = option(0.05, "weight of the KL penalty")
    kl_target: float | None = option(6.0, "nats an answer that the adaptive KL coefficient steers to (none: fixed)")
    kl_horizon: int = option(10_000, "answers over which the adaptive coefficient reacts (Ziegler et al. 2019)")
    max_kl: float | None = option(100.0, "a rollout whose mean KL exceeds this stops the stage (none: never)")
    cliprange: float = option(0.2, "clip range of the probability ratio")
    cliprange_value: float = option(0.2, "clip range of the value")
    vf_coef: float = option(0.1, "weight of the value loss")
    gamma: float = option(1.0, "discount a token")
    lam: float = option(0.95, "lambda of generalised advantage estimation")
    reward_clip: float | None = option(None, "clip rewards to [-x, x] (none: do not)")
    missing_eos_penalty: float | None = option(None, "taken from the reward of an answer that did not end (none: 0)")
    save_rollouts: int = option(10, "keep a resumable checkpoint every so many rollouts (0: none)")
    lora: LoraSettings = option(LoraSettings, "adapters")


def train_policy(
    policy: str,
    prompts: Sequence[dict[str, Any]],
    reward: RewardCallable,
    settings: PPOSettings,
    output: Path,
    work_dir: Path,
    seed: int,
    metrics: Mapping[str, RewardCallable] | None = None,
    chat_template: str | None = None,
) -> list[dict[str, Any]]:
    """Trains a policy with PPO and saves it as a plain model (adapters merged) in `output`.

    Args:
        policy: the policy to start from; it is also the reference of the KL penalty.
        prompts: rows with `prompt`; further columns reach the reward as TRL passes them.
        reward: rewards of answers, in TRL's shape.
        settings: see `PPOSettings`.
        output: the folder of the new policy.
        work_dir: checkpoints; training goes on from the newest complete one.
        seed: of the adapters, the order of prompts and the sampling.
        metrics: further callables of that shape, measured on every rollout and not trained on.
        chat_template: for a policy without one, see `shfcas.models.load_policy`.

    Returns:
        One row of metrics a rollout.

    Raises:
        UserError: settings, prompts or rewards do not fit; the message names which.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    from shfcas.progress import trainer_progress
    from shfcas.training.ppo import PPOConfig, PPOTrainer, latest_checkpoint

    model, tokenizer = load_policy(policy, chat_template)
    options = {name: value for name, value in vars(settings).items() if name not in ("lora", "mini_batch_size")}
    try:
        trainer = PPOTrainer(
            model=model,
            args=PPOConfig(
                per_device_train_batch_size=settings.mini_batch_size,
                **options,
                **quiet_options(work_dir, seed),
            ),
            train_dataset=Dataset.from_list(list(prompts)),
            processing_class=tokenizer,
            reward_funcs=reward,
            peft_config=settings.lora.peft_config(dropout=False),
            metric_funcs=dict(metrics or {}),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(trainer_progress("PPO"))
        with disk_errors(str(work_dir)):
            trainer.train(resume_from_checkpoint=latest_checkpoint(work_dir))
    except UserError:
        raise
    except ValueError as error:  # the trainer's own checks of settings, prompts and rewards
        raise UserError(f"PPO: {error}") from error
    with disk_errors(str(output)):
        trainer.save_merged_policy(output, tokenizer)
    # Sorted, because rows that come back from a checkpoint are.
    return [dict(sorted(row.items())) for row in trainer.state.log_history if "rollout" in row]
