"""Checkpoints of a policy and its value function, and export of the policy as a plain model."""

import copy
import logging
import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from shfcas.models.adapters import fold_attached
from shfcas.training.ppo.checkpoint import VALUE_HEAD_NAME, VALUE_MODEL_NAME, discard, mark_complete, read_state
from shfcas.training.ppo.config import PPOConfig
from shfcas.training.ppo.early_stopping import EarlyStopping, discard_former_best
from shfcas.training.ppo.value_head import PolicyWithValue, causal_lm, is_peft_model

logger = logging.getLogger(__name__)


class PolicyTrainer(Trainer):
    """Trainer of a policy with a value function: complete checkpoints between rollouts, without pickles.

    Subclasses add their own state to checkpoints with `_progress` and `_restore`.
    """

    # Narrower types than in the base class.
    args: PPOConfig
    model: PolicyWithValue
    processing_class: PreTrainedTokenizerBase
    train_dataset: Dataset

    early_stopping: EarlyStopping | None

    @property
    def output_dir(self) -> Path:
        """Returns the folder of the run."""
        return Path(str(self.args.output_dir))

    def _progress(self) -> dict[str, Any]:
        """Returns the state of a run in addition to weights, optimizer and log."""
        raise NotImplementedError

    def _restore(self, progress: dict[str, Any]) -> None:
        """Restores the state that `_progress` returned."""
        raise NotImplementedError

    def _checkpoint_identity(self) -> dict[str, Any]:
        """Returns the settings that determine the rollouts; a resumed run must have the same."""
        names = ("seed", "rollout_batch_size", "steps_per_rollout")
        return {name: getattr(self.args, name) for name in names} | {"num_prompts": len(self.train_dataset)}

    def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """Creates the optimizer; values get groups of their own where they have a learning rate of their own."""
        new, rate = self.optimizer is None, self.args.value_learning_rate
        optimizer: Any = super().create_optimizer(*arguments, **options)
        if new and rate is not None:
            values = self.model.value_head if self.model.value_model is None else self.model.value_model
            chosen = {id(parameter) for parameter in values.parameters()}
            for group in list(optimizer.param_groups):
                parts: tuple[list[Any], list[Any]] = ([], [])
                for parameter in group["params"]:
                    parts[id(parameter) in chosen].append(parameter)
                group["params"] = parts[0]
                if parts[1]:
                    optimizer.add_param_group(group | {"params": parts[1], "lr": rate})
        return optimizer

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        args, step = self.args, self.state.global_step
        if step % args.steps_per_rollout:
            logger.warning("step %d is in the middle of a rollout: writing no checkpoint", step)
            return
        folder = self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if args.should_save:
            discard(folder)
        self.accelerator.wait_for_everyone()
        # The base class would delete older checkpoints before this one is complete.
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if args.should_save:
            mark_complete(folder, self._checkpoint_identity() | self._progress())
            rotate_checkpoints(output_dir=str(self.output_dir), save_total_limit=limit, use_mtime=True)
            if self.early_stopping is not None and self.early_stopping.rollout is not None:
                discard_former_best(self.output_dir, self.early_stopping.rollout)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._restore(read_state(resume_from_checkpoint, self._checkpoint_identity()))
        self._load_weights(Path(resume_from_checkpoint))

    def _load_weights(self, folder: Path) -> None:
        """Loads the weights of policy and value function from a checkpoint or from the best policy's folder."""
        super()._load_from_checkpoint(str(folder), self.model.policy)
        if self.model.value_model is None:
            self.model.value_head.load_state_dict(load_file(folder / VALUE_HEAD_NAME))
        else:
            super()._load_from_checkpoint(str(folder / VALUE_MODEL_NAME), self.model.value_model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raises ValueError if weights are missing (except tied ones) or unexpected."""
        tied = getattr(causal_lm(self.model.policy), "all_tied_weights_keys", None) or {}
        wrong = [*load_result.unexpected_keys, *(set(load_result.missing_keys) - set(tied))]
        if wrong:
            raise ValueError(f"the checkpoint belongs to another model: {wrong[0]} is missing or unexpected")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Saves the policy (adapter or full), its value head or model, the tokenizer and the settings; no pickle."""
        folder = Path(output_dir or self.output_dir)
        if not self.args.should_save:
            return
        policy = self.model.policy
        # With "auto", PEFT would request the base model's vocabulary from the hub.
        policy.save_pretrained(folder, **({"save_embedding_layers": False} if is_peft_model(policy) else {}))
        if self.model.value_model is None:
            save_file(self.model.value_head.state_dict(), folder / VALUE_HEAD_NAME)
        else:
            self.model.value_model.save_pretrained(folder / VALUE_MODEL_NAME)
            self.processing_class.save_pretrained(folder / VALUE_MODEL_NAME)
        self.processing_class.save_pretrained(folder)
        (folder / "ppo_config.json").write_text(self.args.to_json_string() + "\n")

    def save_merged_policy(
        self, output_dir: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Writes the policy as a plain model, with LoRA merged into its weights in float32, and its tokenizer.

        `AutoModelForCausalLM.from_pretrained` loads it. The policy in training does not change.
        """
        if not self.args.should_save:
            return
        policy = self.model.policy
        if is_peft_model(policy):
            policy = fold_attached(copy.deepcopy(policy).float().merge_and_unload())
        policy.save_pretrained(output_dir)
        (tokenizer or self.processing_class).save_pretrained(output_dir)
