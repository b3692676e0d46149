"""Collecting a rollout: sample, score, and work out what every token was worth."""

import torch
from accelerate import Accelerator
from torch import Tensor

from shfcas.seeds import derive_seed
from shfcas.training import ppo_math
from shfcas.training.ppo_config import PPOConfig
from shfcas.training.ppo_reference import Reference
from shfcas.training.ppo_rewards import RolloutScorer
from shfcas.training.rollouts import Rollout, chunks_by_length, generate, pad_rows, prompt_rows
from shfcas.training.value import PolicyWithValue


class RolloutCollector:
    """Makes rollouts with the present policy; number k is the same whenever it is made from the same weights.

    Args:
        model: the policy with its value head.
        reference: the frozen policy.
        scorer: scores completions.
        prompt_ids: all prompts.
        eos_ids: ids that end a completion.
        pad_id: id to pad with; no mask depends on it.
        args: the settings.
        accelerator: knows the processes, each of which collects its share.
    """

    def __init__(
        self,
        model: PolicyWithValue,
        reference: Reference,
        scorer: RolloutScorer,
        prompt_ids: list[list[int]],
        eos_ids: list[int],
        pad_id: int,
        args: PPOConfig,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.reference, self.scorer = model, reference, scorer
        self.prompt_ids, self.eos_ids, self.pad_id = prompt_ids, eos_ids, pad_id
        self.args, self.accelerator = args, accelerator

    @torch.no_grad()
    def collect(self, index: int, kl_coef: float) -> Rollout:
        """Rollout number `index`, ready to train on.

        Its `tokens` are old_logprobs, old_values, advantages and returns; its `metrics` describe the policy
        that sampled it.
        """
        args, process = self.args, self.accelerator.process_index
        rows = prompt_rows(index, args.rollout_batch_size, len(self.prompt_ids), args.seed)
        rows = rows[process :: self.accelerator.num_processes]
        prompt_ids = [self.prompt_ids[row] for row in rows]
        self.model.eval()
        with self.accelerator.autocast():
            completions = generate(
                self.model.policy,
                prompt_ids,
                eos_ids=self.eos_ids,
                pad_id=self.pad_id,
                max_new_tokens=args.max_completion_length,
                temperature=args.temperature,
                batch_size=args.generation_batch_size,
                seed=derive_seed("sampling", args.seed, index, process, bits=63),
            )
        rollout = Rollout(*pad_rows(prompt_ids, self.pad_id, "left", args.device), *completions)
        self._add_model_outputs(rollout)
        scores, logged = self.scorer(rows, rollout)
        self._add_advantages(rollout, scores, logged, kl_coef)
        return rollout

    def _add_model_outputs(self, rollout: Rollout) -> None:
        """Log-probabilities and values of the policy that sampled, and log-probabilities of the reference."""
        lengths = (rollout.prompt_mask.sum(dim=1) + rollout.lengths).tolist()
        for rows in chunks_by_length(lengths, self.args.generation_batch_size):
            inputs = rollout.model_inputs(rows)
            with self.accelerator.autocast():
                output, reference = self.model(**inputs), self.reference.logprobs(**inputs)
            rollout.put(rows, old_logprobs=output.logprobs, old_values=output.values, ref_logprobs=reference)

    def _add_advantages(self, rollout: Rollout, scores: Tensor, logged: dict[str, Tensor], kl_coef: float) -> None:
        """Advantages and returns of every token, and the metrics of all processes' rollouts together."""
        args, mask, tokens = self.args, rollout.mask, rollout.tokens
        kl = ppo_math.kl_penalty(tokens["old_logprobs"], tokens.pop("ref_logprobs"), args.kl_estimator)
        rewards = ppo_math.token_rewards(kl, scores, mask, kl_coef)
        advantages, tokens["returns"] = ppo_math.gae(rewards, tokens["old_values"], mask, args.gamma, args.lam)
        tokens["advantages"] = ppo_math.masked_whiten(advantages, mask) if args.whiten_advantages else advantages
        columns = {
            "objective/scores": scores,
            "objective/kl": kl.sum(dim=1),
            "objective/entropy": -tokens["old_logprobs"].sum(dim=1),
            "objective/non_score_reward": -kl_coef * kl.sum(dim=1),
            "objective/rlhf_reward": rewards.sum(dim=1),
            "completions/mean_length": rollout.lengths.float(),
            "val/num_eos_tokens": rollout.finished.float(),
            **logged,
        }
        table = self.accelerator.gather(torch.stack(list(columns.values()), dim=1))
        rollout.metrics = dict(zip(columns, table.nanmean(dim=0).tolist(), strict=True))
        rollout.metrics["val/num_eos_tokens"] *= len(table)
        rollout.metrics["objective/scores_std"] = table[:, 0].std(correction=0).item()
        rollout.metrics["objective/kl_coef"] = kl_coef
