"""TRL's RLOO and GRPO trainers, with rollouts sampled, scored and logged as in our PPO.

Losses and advantages are TRL's. All random numbers of a rollout are functions of (seed, rollout), and checkpoints are
between rollouts, so a run resumes exactly.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig as TRLGRPOConfig
from trl import GRPOTrainer, RLOOTrainer
from trl import RLOOConfig as TRLRLOOConfig
from trl.trainer.utils import add_fused_lm_head

from shfcas.models.loading import context_length
from shfcas.rewards.scorers import RewardCallable
from shfcas.training.common import on_one_device
from shfcas.training.online.config import GRPOConfig, OnlineConfig
from shfcas.training.ppo.rewards import evaluate_callable
from shfcas.training.ppo.rollout import decode, encode_prompts, generate, prompt_rows, stop_ids
from shfcas.training.ppo.value_head import LanguageModel, causal_lm, disable_dropout
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

logger = logging.getLogger(__name__)


class KLGuard(Exception):
    """Signal that the policy's KL to the reference exceeds `max_kl`; raised before another update."""


class RolloutReward:
    """Reward function that TRL calls once per rollout; it keeps its measurements.

    There is one function for all callables. With separate functions, TRL would add metrics with weight 0 to the
    reward. It would then give an answer without an applicable reward the reward 0 if a metric applies.

    Args:
        reward: the reward, with TRL's signature.
        metrics: callables by name that are only measured.
        rows: the prompts with their other columns.
        tokenizer: the policy's.
        eos_ids: ids that end an answer.
        settings: clipping, and the penalty of answers without an end.
    """

    __name__ = "reward"

    def __init__(
        self,
        reward: RewardCallable,
        metrics: dict[str, RewardCallable],
        *,
        rows: Sequence[dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        settings: OnlineConfig,
    ) -> None:
        self.reward, self.metrics, self.rows, self.tokenizer = reward, metrics, rows, tokenizer
        self.eos_ids, self.settings = frozenset(eos_ids), settings
        self.columns = {name for row in rows for name in row} - {"prompt", "completion", "completion_ids"}
        self.measured: dict[str, Tensor] = {}

    def __call__(self, completion_ids: list[list[int]], row: list[int], **others: Any) -> list[float]:
        """Returns the rewards of the answers `completion_ids` to the prompts of these rows.

        Raises:
            UserError: a callable returned the wrong number of values, a value that is not finite, or no reward.
        """
        rows = [self.rows[i] for i in row]
        prompts = [r["prompt"] for r in rows]
        finished = torch.tensor([ids[-1] in self.eos_ids for ids in completion_ids])
        arguments: dict[str, Any] = {
            **{name: [r.get(name) for r in rows] for name in self.columns},
            "prompts": prompts,
            "completions": decode(self.tokenizer, prompts, completion_ids, finished.tolist()),
            "completion_ids": completion_ids,
            **{name: others[name] for name in ("trainer_state", "log_extra", "log_metric") if name in others},
        }
        scores = evaluate_callable("reward", self.reward, len(rows), arguments)
        if scores.isnan().any():
            raise UserError(f"the reward function returned None for completion {int(scores.isnan().nonzero()[0])}")
        if self.settings.reward_clip is not None:
            scores = scores.clamp(-self.settings.reward_clip, self.settings.reward_clip)
        if self.settings.missing_eos_penalty is not None:
            scores = scores - self.settings.missing_eos_penalty * ~finished
        self.measured = {
            "objective/scores": scores,
            "val/num_eos_tokens": finished.float(),
            "completions/mean_length": torch.tensor([float(len(ids)) for ids in completion_ids]),
            **{
                f"objective/{name}": evaluate_callable(name, metric, len(rows), arguments)
                for name, metric in self.metrics.items()
            },
        }
        return scores.tolist()


class Rollouts:
    """Mixin that replaces sampling, scoring and logging of TRL's trainers.

    Args:
        model: the policy.
        args: TRL's settings.
        settings: settings of shfcas.
        reward: scorer of the rollouts.
        dataset: one row per prompt of each rollout, in order.
        tokenizer: the policy's.
        peft_config: the adapter, or None.
        reference: the reference of the KL; None is the policy with its initial weights.
    """

    # Attributes of TRL's trainers.
    accelerator: Any
    args: Any
    model: Any
    processing_class: Any
    state: Any
    _metrics: dict[str, Any]

    def __init__(
        self,
        model: LanguageModel,
        args: Any,
        *,
        settings: OnlineConfig,
        reward: RolloutReward,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        peft_config: Any,
        reference: LanguageModel | None = None,
    ) -> None:
        self.settings, self.reward = settings, reward
        self._row: dict[str, float] = {}
        # TRL would load the reference by the name in the model's configuration, which may be a different model now.
        if settings.kl_coef > 0 and peft_config is None and reference is None:
            reference = copy.deepcopy(model).requires_grad_(False)
        args.beta = 0.0
        super().__init__(  # type: ignore[call-arg]
            model=model,
            args=args,
            reward_funcs=reward,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        self.beta = args.beta = settings.kl_coef
        if reference is not None:
            disable_dropout(reference)
            add_fused_lm_head(reference, temperature=settings.temperature)
            self.ref_model = self.accelerator.prepare_model(reference.eval(), evaluation_mode=True)

    def _send_telemetry(self) -> None:
        """Sends nothing."""

    def _answers(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Samples one answer to each prompt, as token ids, like PPO: from the whole distribution, in batches."""
        model, settings = self.accelerator.unwrap_model(self.model), self.settings
        model.eval()
        first = self.accelerator.process_index * len(prompt_ids)  # each process has a consecutive share of the prompts
        with self.accelerator.autocast():
            completions, mask, _ = generate(
                model,
                prompt_ids,
                eos_ids=sorted(self.reward.eos_ids),
                pad_id=self.processing_class.pad_token_id,
                max_new_tokens=settings.max_completion_length,
                temperature=settings.temperature,
                batch_size=settings.generation_batch_size,
                seeds=[
                    derive_seed("sampling", self.args.seed, self._rollout, first + i, bits=64)
                    for i in range(len(prompt_ids))
                ],
            )
        model.train()
        return [ids[:n].tolist() for ids, n in zip(completions.cpu(), mask.sum(dim=1).tolist(), strict=True)]

    @property
    def _rollout(self) -> int:
        return self.state.global_step // self.settings.steps_per_rollout

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        logprobs, kl = self._sequence_sums(output)
        table = {name: values.to(self.args.device) for name, values in self.reward.measured.items()}
        table["objective/entropy"] = -logprobs
        gathered = self.accelerator.gather(torch.stack(list(table.values()), dim=1))
        row = dict(zip(table, gathered.nanmean(dim=0).tolist(), strict=True))
        row["objective/scores_std"] = gathered[:, 0].std(correction=0).item()
        row["val/num_eos_tokens"] *= len(gathered)
        if kl is not None:
            coefficient = self.settings.kl_coef
            row |= {
                "objective/kl": kl,
                "objective/kl_coef": coefficient,
                "objective/non_score_reward": -coefficient * kl,
                "objective/rlhf_reward": row["objective/scores"] - coefficient * kl,
            }
        self._row = {"rollout": self._rollout, **row}
        limit = self.settings.max_kl
        if kl is not None and limit is not None and not kl <= limit:  # NaN exceeds it, too
            logger.warning(
                "the policy's KL to the reference, %.4g, exceeds max_kl=%g: training stops before another update",
                kl,
                limit,
            )
            self.log(self._row | {"kl_guard": 1.0})
            raise KLGuard
        # Next, TRL shuffles into mini-batches with the global generator, which rewards may have used.
        torch.manual_seed(derive_seed("minibatches", self.args.seed, self._rollout, bits=63))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs one row per rollout, with the names that PPO uses."""
        measured = {name: [v for v in values if v == v] for name, values in self._metrics["train"].items()}
        self._metrics["train"].clear()  # otherwise the base class would add them under its own names
        if "loss" in logs:
            renamed = {
                "policy/entropy_avg": "entropy",
                "policy/clipfrac_avg": "clip_ratio/region_mean",
                "frac_reward_zero_std": "frac_reward_zero_std",
            }
            means = {
                ours: sum(measured[trl]) / len(measured[trl]) for ours, trl in renamed.items() if measured.get(trl)
            }
            logs = self._row | logs | means
        super().log(logs, start_time)  # type: ignore[misc]

    def _sequence_sums(self, output: dict[str, Any]) -> tuple[Tensor, float | None]:
        """Returns the log-probabilities of a rollout's answers (B,), and the mean KL of all processes' answers."""
        raise NotImplementedError


class RLOO(Rollouts, RLOOTrainer):
    """TRL's RLOOTrainer: the KL is part of the reward, and ratios are those of whole answers."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *unused: Any) -> list[list[int]]:
        return self._answers(prompt_ids)

    def _sequence_sums(self, output: dict[str, Any]) -> tuple[Tensor, float | None]:
        if not self.beta:
            return output["old_logps"], None
        measured = self._metrics["train"]  # TRL logs the mean per token
        tokens = self.reward.measured["completions/mean_length"].to(self.args.device)
        return output["old_logps"], measured["kl"][-1] * self.accelerator.gather(tokens).mean().item()


class GRPO(Rollouts, GRPOTrainer):
    """TRL's GRPOTrainer: advantages within a group, the KL (k3) a term of the loss."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *unused: Any) -> tuple[list[list[int]], None]:
        return self._answers(prompt_ids), None

    def _sequence_sums(self, output: dict[str, Any]) -> tuple[Tensor, float | None]:
        if "old_per_token_logps" not in output:  # TRL omits them if the update starts with the same weights
            with torch.no_grad():
                output["old_per_token_logps"] = self._get_per_token_logps_and_entropies(
                    self.model,
                    torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                    torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                    output["completion_ids"].shape[1],
                    self.args.per_device_train_batch_size,
                )[0]
        logprobs, mask = output["old_per_token_logps"], output["completion_mask"]
        sums = (logprobs * mask).sum(dim=1)
        if not self.beta:
            return sums, None
        kl = ((logprobs - output["ref_per_token_logps"]) * mask).sum(dim=1)
        return sums, self.accelerator.gather(kl).mean().item()


def make_trainer(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[dict[str, Any]],
    reward: RewardCallable,
    settings: OnlineConfig,
    work_dir: Path,
    seed: int,
    metrics: dict[str, RewardCallable],
    reference: LanguageModel | None = None,
) -> Any:
    """Creates the trainer for these settings; without a reference, it is the model as it is now.

    Raises:
        ValueError: a prompt is empty or too long, or there is no end token; nothing is truncated.
    """
    grpo = isinstance(settings, GRPOConfig)
    rows = [dict(row) for row in prompts]
    encode_prompts(
        Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        tokenizer,
        max_prompt_length=settings.max_prompt_length,
        max_completion_length=settings.max_completion_length,
        context_length=context_length(model),
    )
    eos_ids = stop_ids(causal_lm(model), tokenizer, None)
    disable_dropout(model)
    size = settings.rollout_batch_size // settings.num_generations
    order = [i for k in range(settings.num_rollouts) for i in prompt_rows(k, size, len(rows), seed)]
    trainer_class, config_class = (GRPO, TRLGRPOConfig) if grpo else (RLOO, TRLRLOOConfig)
    return trainer_class(
        model,
        on_one_device(config_class(**settings.trainer_options(work_dir, seed))),
        settings=settings,
        reward=RolloutReward(reward, metrics, rows=rows, tokenizer=tokenizer, eos_ids=eos_ids, settings=settings),
        dataset=Dataset.from_list([{"prompt": rows[i]["prompt"], "row": i} for i in order]),
        tokenizer=tokenizer,
        peft_config=settings.lora.peft_config(dropout=False),
        reference=reference,
    )
