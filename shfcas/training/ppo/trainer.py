"""PPO trainer, based on `transformers.Trainer`.

One epoch of the trainer is one rollout: answers are sampled and scored, then used for a few epochs of clipped updates.
The base class provides the rest: optimizer, schedule, accumulation, callbacks, trackers.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from shfcas.models.loading import context_length, load_policy
from shfcas.training.common import latest_checkpoint
from shfcas.training.ppo import losses
from shfcas.training.ppo.checkpoint import STATE_NAME, discard, mark_complete
from shfcas.training.ppo.collector import RolloutCollector
from shfcas.training.ppo.config import PPOConfig
from shfcas.training.ppo.demonstrations import Demonstrations
from shfcas.training.ppo.early_stopping import EarlyStopping, best_folder, discard_former_best
from shfcas.training.ppo.reference import Reference, policy_and_reference
from shfcas.training.ppo.rewards import (
    RewardCallable,
    RewardFunctions,
    RolloutScorer,
    Tokenizers,
    reward_callables,
)
from shfcas.training.ppo.rollout import Rollout, RolloutLoader, encode_prompts, minibatch_rows, stop_ids
from shfcas.training.ppo.samples import track_samples, write_samples
from shfcas.training.ppo.saving import PolicyTrainer
from shfcas.training.ppo.value_head import (
    LanguageModel,
    PolicyWithValue,
    causal_lm,
    warn_of_half_precision,
)
from shfcas.training.ppo.value_model import make_value_model

__all__ = ["PPOConfig", "PPOTrainer"]

logger = logging.getLogger(__name__)


class UpdateStop(TrainerCallback):
    """Skips the other updates of a rollout, see `max_update_kl`: without gradients, an optimizer changes nothing."""

    def __init__(self, args: PPOConfig) -> None:
        self.args = args
        self.rollout: int | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes the gradients of a rollout that was stopped."""
        if self.rollout == state.global_step // self.args.steps_per_rollout:
            kwargs["optimizer"].zero_grad(set_to_none=True)


class PPOTrainer(PolicyTrainer):
    """Trainer for proximal policy optimisation of a causal language model on prompts.

    The reference of the KL penalty is the initial policy. With `peft_config`, this is the model with its new adapter
    disabled, so no second copy is needed. Otherwise it is a frozen copy, unless `ref_model` is given.

    `state.log_history` has one row per rollout, with key `rollout` counted from 0. Its values `objective/*` and
    `eval_*` describe the policy before the updates of that rollout.

    A rollout that exceeds `max_kl` logs a row with `kl_guard`, makes no update, sets `stopped_by_kl` and ends training.
    After `early_stopping_patience` evaluations without improvement, training ends, with `early_stop` in the log and
    `stopped_early` set. Then, and at the regular end, the policy is reset to the best evaluated one. A policy beyond
    `max_kl` is never the best.

    Args:
        model: a causal language model, a PEFT model (then `ref_model` is required), or a name (see
            `shfcas.models.loading`) to load in float32. Its dropout is disabled in place.
        args: the settings.
        train_dataset: column `prompt`, text or lists of messages. Other columns are passed to the reward callables.
        processing_class: the policy's tokenizer.
        reward_funcs: one or several, summed with `reward_weights`. A callable `f(prompts, completions,
            completion_ids=..., **columns)` returns a number per completion (or None if it does not apply). A
            sequence-classification model is used as is. A name is a model, loaded with its tokenizer, or
            `module:function`. Completions are text for text prompts, and one assistant message in a list for messages.
        eval_dataset: held-out prompts for `eval_rollouts`, with the columns of `train_dataset`.
        ref_model: another reference model.
        reward_processing_classes: tokenizers of the reward models, in the order of `reward_funcs`.
        value_model: a separate value model or its name, instead of a head on the policy's trunk. It is a sequence
            classifier with one output, which starts from its head, or any causal model with the policy's vocabulary.
            All its weights are trained.
        peft_config: adapter to train on a plain model.
        demonstrations: rows with `prompt` and `completion` (text), for `ptx_coef`.
        cost_func: a callable with the same signature, higher is worse. Its mean is kept at `cost_limit` by a Lagrange
            multiplier (Dai et al. 2023). A named one is loaded with `shfcas.rewards.scorers.load_cost`.
        metric_funcs: callables with the same signature, by name, logged as `objective/<name>` and not used for
            training.
        callbacks, optimizers: see `transformers.Trainer`.

    Raises:
        ValueError: arguments are inconsistent; the message names them.
    """

    _evaluated: int | None  # the rollout before which the policy was last evaluated

    # `compute_loss` already averages over the tokens of the whole accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: LanguageModel | str | os.PathLike[str],
        args: PPOConfig,
        *,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        reward_funcs: RewardFunctions,
        eval_dataset: Dataset | None = None,
        ref_model: LanguageModel | None = None,
        reward_processing_classes: Tokenizers = None,
        value_model: Any = None,
        peft_config: Any = None,
        metric_funcs: dict[str, RewardCallable] | None = None,
        demonstrations: Sequence[dict[str, Any]] = (),
        cost_func: RewardCallable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ) -> None:
        if args.eval_rollouts and eval_dataset is None:
            raise ValueError("eval_dataset: expected held-out prompts for eval_rollouts, got None; pass eval_dataset")
        metric, measured = args.early_stopping_metric, ("scores", *(metric_funcs or ()))
        if metric not in measured:
            raise ValueError(f"early_stopping_metric: expected one of {', '.join(measured)}, got {metric!r}")
        if isinstance(model, (str, os.PathLike)):
            model, _ = load_policy(str(model), dtype=torch.float32)
        if value_model is not None:
            value_model = make_value_model(value_model, model, processing_class, model.device)
        context = min(context_length(m) for m in (model, value_model) if m is not None)
        encode = partial(
            encode_prompts,
            max_prompt_length=args.max_prompt_length,
            max_completion_length=args.max_completion_length,
            context_length=context,
        )
        prompts = encode(train_dataset, processing_class)
        self.eval_prompts = None
        if eval_dataset is not None:
            self.eval_prompts = encode(eval_dataset, processing_class, name="eval_dataset")
        eos_ids = stop_ids(causal_lm(model), processing_class, args.stop_token_ids)
        self.demonstrations = None
        if args.ptx_coef:
            self.demonstrations = Demonstrations(
                demonstrations, processing_class, end_ids=set(eos_ids), context_length=context, seed=args.seed
            )
        torch.manual_seed(args.seed)  # for the random weights of a new adapter
        policy, ref_model = policy_and_reference(model, ref_model, peft_config)
        warn_of_half_precision(policy, value_model)
        self.update_stop, self.has_cost = UpdateStop(args), cost_func is not None
        super().__init__(
            model=PolicyWithValue(policy, args.temperature, value_model, entropy_gradient=args.entropy_coef > 0),
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), self.update_stop],
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "PPOTrainer does not support FSDP or DeepSpeed, which would gather the weights for every sampled "
                "token; run it in one process or with DDP, with an adapter if memory is short"
            )
        if eval_dataset is not None and len(eval_dataset) < self.accelerator.num_processes:
            raise ValueError(
                f"eval_dataset: expected at least one prompt per process, {self.accelerator.num_processes}, got "
                f"{len(eval_dataset)}"
            )
        rewards = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        if value_model is not None and any(func is value_model for func in rewards):
            raise ValueError("value_model: expected a separate model, got a model of reward_funcs; pass a copy")
        self.collector = RolloutCollector(
            self.model,
            Reference(self.model, None if ref_model is None else ref_model.to(args.device)),
            scorer=RolloutScorer(
                reward_callables(reward_funcs, reward_processing_classes, args.generation_batch_size, args.device),
                dict(metric_funcs or {}),
                processing_class,
                args,
                cost_func,
            ),
            prompts=prompts,
            eos_ids=eos_ids,
            pad_id=eos_ids[0] if processing_class.pad_token_id is None else processing_class.pad_token_id,
            args=args,
            accelerator=self.accelerator,
        )
        self._rollout_metrics: dict[str, float] = {}
        self._update_sums: dict[str, Tensor] = {}
        self._start_over()

    # Rollouts

    def get_train_dataloader(self) -> Any:
        """Returns a loader that yields the micro-batches of one rollout after another."""
        return RolloutLoader(self._rollout_batches, self.args.steps_per_rollout * self.args.gradient_accumulation_steps)

    def _rollout_batches(self) -> Iterator[dict[str, Tensor]]:
        args = self.args
        index = self.rollout
        self._rollout_metrics = {"rollout": index}
        if args.eval_rollouts and index % args.eval_rollouts == 0:
            self._rollout_metrics |= self._evaluate_policy()
            if self.early_stopping is not None and self.early_stopping.exhausted:
                self.stopped_early = True
                self._stop(early_stop=1.0)
                return
        rollout = self.collect_rollout(index)
        self._rollout_metrics |= {"episode": (index + 1) * args.rollout_batch_size} | rollout.metrics
        self._log_samples(index, rollout)
        kl = rollout.metrics["objective/kl"]
        if args.max_kl is not None and not kl <= args.max_kl:  # NaN exceeds it, too
            logger.warning(
                "the policy's KL to the reference, %.4g, exceeds max_kl=%g: training stops before another update",
                kl,
                args.max_kl,
            )
            self.stopped_by_kl = True
            self._stop(kl_guard=1.0)
            return
        self.kl_controller.update(kl, args.rollout_batch_size)
        if self.cost_multiplier is not None:
            self.cost_multiplier.update(rollout.metrics["objective/cost"])
        self.reward_moments = rollout.moments

        size, processes = args.train_batch_size, self.accelerator.num_processes
        own = size * args.gradient_accumulation_steps
        steps = minibatch_rows(
            len(rollout), own * processes, num_epochs=args.num_ppo_epochs, seed=args.seed, rollout=index
        )
        for step, rows in enumerate(steps, index * args.steps_per_rollout):
            # Losses are means over the tokens of an optimizer step, for any micro-batches and processes. The
            # gradients of the processes are averaged, not added.
            count = rollout.lengths[rows].sum() / processes
            first = own * self.accelerator.process_index
            for start in range(first, first + own, size):
                micro = rollout.batch(rows[start : start + size]) | {"num_tokens": count}
                if self.demonstrations is not None:  # as many as answers
                    chosen = self.demonstrations.of_step(step, len(rows))
                    micro["demonstrations"] = self.demonstrations.batch(chosen[start : start + size], args.device)
                    micro["demonstrated_tokens"] = count.new_tensor(self.demonstrations.num_tokens(chosen) / processes)
                yield micro

    def collect_rollout(self, index: int) -> Rollout:
        """Samples rollout number `index` from the current policy, and scores it."""
        return self.collector.collect(index, self.kl_controller.value, self.reward_moments, self.cost_multiplier)

    @property
    def rollout(self) -> int:
        """Returns the number of the rollout that the current policy samples or trains on."""
        return self.state.global_step // self.args.steps_per_rollout

    def _stop(self, **reason: float) -> None:
        self.control.should_training_stop = True
        self.log(self._rollout_metrics | reason)

    def _log_samples(self, index: int, rollout: Rollout) -> None:
        if rollout.samples and self.is_world_process_zero():
            write_samples(self.output_dir, index, rollout.samples)
            track_samples(self.args.report_to or (), rollout.samples)

    # Evaluation

    def evaluate(self) -> dict[str, float]:  # type: ignore[override]
        """Evaluates the current policy on `eval_dataset`; see `RolloutCollector.evaluate`."""
        if self.eval_prompts is None:
            raise ValueError("eval_dataset: expected held-out prompts, got None; pass eval_dataset")
        return self.collector.evaluate(self.eval_prompts)

    def _evaluate_policy(self) -> dict[str, float]:
        """Evaluates the current policy and saves it if it is the best so far."""
        metrics, args = self.evaluate(), self.args
        self._evaluated = self.rollout
        if self.early_stopping is not None:
            value = metrics[f"eval_{args.early_stopping_metric}"]
            eligible = not math.isnan(value) and (args.max_kl is None or metrics["eval_kl"] <= args.max_kl)
            if self.early_stopping.update(value if eligible else None, self.rollout):
                folder = best_folder(self.output_dir, self.rollout)
                if args.should_save:
                    discard(folder)
                self._save(str(folder))
                if args.should_save:
                    mark_complete(folder, {"rollout": self.rollout, "value": value})
                    discard_former_best(self.output_dir, self.rollout)
                self.accelerator.wait_for_everyone()
        return metrics

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # A callback may have stopped the training in the middle of a rollout's updates.
        between = self.state.global_step % self.args.steps_per_rollout > 0
        if self.args.eval_rollouts and self._evaluated != self.rollout and not between:
            self.log({"rollout": self.rollout} | self._evaluate_policy())
        best = None if self.early_stopping is None else self.early_stopping.rollout
        if best is not None and (between or best != self.rollout):
            logger.info("the policy before rollout %d was the best one: resetting to it", best)
            self._load_weights(best_folder(self.output_dir, best))
        return super()._finalize_training(*args, **kwargs)

    # Updates

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Computes the clipped policy loss + `vf_coef` * clipped value loss - `entropy_coef` * entropy.

        With `ptx_coef`, that many times the negative log-likelihood of demonstrations is added.
        """
        args, mask, count = self.args, inputs["completion_mask"], inputs["num_tokens"]
        self.model.frozen_trunk = self.rollout < args.value_warmup_rollouts
        shown = inputs.get("demonstrations")
        output = model(inputs["input_ids"], inputs["attention_mask"], mask, demonstrations=shown)
        policy_loss, stats = losses.clipped_policy_loss(
            output.logprobs,
            inputs["old_logprobs"],
            inputs["advantages"],
            mask,
            cliprange=args.cliprange,
            dual_clip=args.dual_clip,
            count=count,
        )
        value_loss, value_clipfrac = losses.clipped_value_loss(
            output.values, inputs["old_values"], inputs["returns"], mask, cliprange=args.cliprange_value, count=count
        )
        entropy = losses.masked_mean(output.entropy, mask, count)
        measured = {
            "loss/policy_avg": policy_loss,
            "loss/value_avg": value_loss,
            "policy/approxkl_avg": stats["approxkl"],
            "policy/clipfrac_avg": stats["clipfrac"],
            "policy/entropy_avg": entropy,
            "val/clipfrac_avg": value_clipfrac,
            "val/ratio": stats["ratio"],
            "val/ratio_var": stats["ratio_square"],
        }
        if shown is not None:
            mask_shown, count_shown = shown["completion_mask"], inputs["demonstrated_tokens"]
            measured["loss/ptx_avg"] = -losses.masked_mean(output.demonstrated, mask_shown, count_shown)
        for name, value in measured.items():
            self._update_sums[name] = self._update_sums.get(name, 0.0) + value.detach()
        if args.max_update_kl is not None:  # all processes decide alike
            moved = self.accelerator.reduce(stats["approxkl"] * count / mask.sum(), reduction="mean")
            if moved > args.max_update_kl:
                self.update_stop.rollout = self.rollout
        if args.kl_in_loss:
            kl = losses.kl_penalty(output.logprobs, inputs["ref_logprobs"], "k3")
            policy_loss = policy_loss + self.kl_controller.value * losses.masked_mean(kl, mask, count)
        if shown is not None:
            policy_loss = policy_loss + args.ptx_coef * measured["loss/ptx_avg"]
        policy_loss = policy_loss - args.entropy_coef * entropy
        loss = args.vf_coef * value_loss + (0.0 if self.model.frozen_trunk else 1.0) * policy_loss
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the rollout's metrics to the row that the base class logs at the end of its updates."""
        if "loss" in logs and self._update_sums:
            sums = self.accelerator.reduce(torch.stack(list(self._update_sums.values())), reduction="mean")
            means = dict(zip(self._update_sums, (sums / self.args.steps_per_rollout).tolist(), strict=True))
            means["val/ratio_var"] -= (means["val/ratio"] - 1.0) ** 2
            logs = self._rollout_metrics | logs | means | {"lr": logs["learning_rate"]}
            self._update_sums.clear()
        super().log(logs, start_time)

    # Start and resume

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains from the beginning, or from a checkpoint (True: the newest complete one of `output_dir`)."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = latest_checkpoint(self.output_dir, STATE_NAME)
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.output_dir}: expected a complete checkpoint to resume from, got none")
        self._start_over()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _start_over(self) -> None:
        args = self.args
        self.kl_controller: losses.KLController = (
            losses.FixedKLController(args.kl_coef)
            if args.kl_target is None
            else losses.AdaptiveKLController(
                args.kl_coef, args.kl_target, args.kl_horizon * args.num_rollouts * args.rollout_batch_size
            )
        )
        self.cost_multiplier = None
        if self.has_cost:
            self.cost_multiplier = losses.CostMultiplier(
                args.cost_multiplier,
                limit=args.cost_limit,
                rate=args.cost_multiplier_rate,
                highest=args.cost_multiplier_max,
            )
        self.reward_moments = losses.RewardMoments()
        self.early_stopping = (
            None if args.early_stopping_patience is None else EarlyStopping(args.early_stopping_patience)
        )
        self.stopped_by_kl = self.stopped_early = False
        self._evaluated = None
        self._rollout_metrics = {}
        self._update_sums = {}

    def _progress(self) -> dict[str, Any]:
        return {
            "kl_coef": self.kl_controller.value,
            "cost_multiplier": None if self.cost_multiplier is None else self.cost_multiplier.value,
            "reward_moments": asdict(self.reward_moments),
            "early_stopping": None if self.early_stopping is None else asdict(self.early_stopping),
        }

    def _restore(self, progress: dict[str, Any]) -> None:
        self.kl_controller.value = progress["kl_coef"]
        if self.cost_multiplier is not None and progress["cost_multiplier"] is not None:
            self.cost_multiplier.value = progress["cost_multiplier"]
        self.reward_moments = losses.RewardMoments(**progress["reward_moments"])
        found = progress["early_stopping"]
        if self.early_stopping is not None and found is not None:
            self.early_stopping = EarlyStopping(**found | {"patience": self.early_stopping.patience})
