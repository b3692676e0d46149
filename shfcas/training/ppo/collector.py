"""Collection of a rollout: sampling, scoring, advantages and returns."""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, pad_across_processes
from torch import Tensor

from shfcas.training.ppo import losses
from shfcas.training.ppo.config import PPOConfig
from shfcas.training.ppo.losses import CostMultiplier, RewardMoments
from shfcas.training.ppo.reference import Reference
from shfcas.training.ppo.rewards import RolloutScorer, ScoredRollout, adjusted_scores
from shfcas.training.ppo.rollout import Prompts, Rollout, chunks_by_length, generate, pad_rows, prompt_rows
from shfcas.training.ppo.value_head import PolicyWithValue
from shfcas.utils.seeds import derive_seed


class RolloutCollector:
    """Collector of rollouts with the current policy; rollout k depends only on k and the weights.

    Args:
        model: the policy with its value function.
        reference: the frozen policy.
        scorer: scorer of completions.
        prompts: all prompts.
        eos_ids: ids that end a completion.
        pad_id: id to pad with; no mask depends on it.
        args: the settings.
        accelerator: the processes. Each collects a consecutive share of a rollout, and all get the whole rollout.
    """

    def __init__(
        self,
        model: PolicyWithValue,
        reference: Reference,
        *,
        scorer: RolloutScorer,
        prompts: Prompts,
        eos_ids: list[int],
        pad_id: int,
        args: PPOConfig,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.reference, self.scorer = model, reference, scorer
        self.prompts, self.eos_ids, self.pad_id = prompts, eos_ids, pad_id
        self.args, self.accelerator = args, accelerator

    @torch.no_grad()
    def collect(
        self, index: int, kl_coef: float, moments: RewardMoments, multiplier: CostMultiplier | None = None
    ) -> Rollout:
        """Collects rollout number `index`, ready for training.

        Its `tokens` are old_logprobs, old_values, advantages and returns. Its `metrics` describe the policy that
        sampled it.

        Args:
            index: number of the rollout.
            kl_coef: weight of the KL penalty.
            moments: moments of the rewards of all earlier rollouts.
            multiplier: weighs costs against rewards; None where there is no cost.
        """
        rows = prompt_rows(index, self.args.rollout_batch_size, len(self.prompts), self.args.seed)
        positions = self._share(len(rows))
        rows = [rows[position] for position in positions]
        rollout = self._sample(self.prompts, rows, self._seeds(positions, "sampling", index))
        scored = self.scorer(self.prompts.dataset, rows, rollout)
        self._add_rewards(rollout, scored, kl_coef=kl_coef, moments=moments, multiplier=multiplier)
        if self.args.log_completions:
            rollout.samples = gather_object([{"rollout": index} | row for row in self._samples(rollout, scored)])
        rollout = self._whole(rollout)
        self._measure(rollout, kl_coef)
        if multiplier is not None:
            rollout.metrics["objective/cost_multiplier"] = multiplier.value
        self._add_advantages(rollout)
        return rollout

    @torch.no_grad()
    def evaluate(self, prompts: Prompts) -> dict[str, float]:
        """Evaluates the policy on one answer to each of these prompts, always with the same random numbers.

        Returns:
            Means: `eval_scores` (the weighted rewards, neither normalised nor clipped nor penalised), `eval_kl`,
            `eval_mean_length`, `eval_cost` if there is a cost, and `eval_<name>` for each metric.
        """
        rows = self._share(len(prompts))
        rollout = self._sample(prompts, rows, self._seeds(rows, "evaluation"))
        scored = self.scorer(prompts.dataset, rows, rollout)
        kl = rollout.tokens["old_logprobs"] - rollout.tokens["ref_logprobs"]
        columns = {"scores": scored.scores, "kl": kl.sum(dim=1), "mean_length": rollout.lengths.float()}
        if scored.costs is not None:
            columns["cost"] = scored.costs
        for name in self.scorer.metric_funcs:
            columns[name] = scored.columns[f"objective/{name}"]
        table = torch.stack(list(columns.values()), dim=1)
        totals = torch.stack([table.nansum(dim=0), (~table.isnan()).sum(dim=0)])
        totals, counts = self.accelerator.reduce(totals, reduction="sum")  # shares may differ by a row
        means = (totals / counts).tolist()
        return {f"eval_{name}": value for name, value in zip(columns, means, strict=True)}

    def _share(self, count: int) -> list[int]:
        """Returns the positions of this process; shares differ by at most one position."""
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        return list(range(count * index // processes, count * (index + 1) // processes))

    def _seeds(self, positions: list[int], *parts: str | int) -> list[int]:
        """Returns the seeds of answers by their global position, so they do not depend on the number of processes."""
        return [derive_seed(parts[0], self.args.seed, *parts[1:], position, bits=64) for position in positions]

    def _sample(self, prompts: Prompts, rows: list[int], seeds: list[int]) -> Rollout:
        """Samples answers to these prompts, and computes log-probabilities and values of their tokens."""
        args = self.args
        prompt_ids = [prompts.ids[row] for row in rows]
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
                seeds=seeds,
            )
        rollout = Rollout(*pad_rows(prompt_ids, self.pad_id, "left", args.device), *completions)
        lengths = (rollout.prompt_mask.sum(dim=1) + rollout.lengths).tolist()
        for part in chunks_by_length(lengths, args.generation_batch_size):
            inputs = rollout.model_inputs(part)
            with self.accelerator.autocast():
                output, reference = self.model(**inputs, entropy=False), self.reference.logprobs(**inputs)
            rollout.put(part, old_logprobs=output.logprobs, old_values=output.values, ref_logprobs=reference)
        return rollout

    def _add_rewards(
        self,
        rollout: Rollout,
        scored: ScoredRollout,
        *,
        kl_coef: float,
        moments: RewardMoments,
        multiplier: CostMultiplier | None,
    ) -> None:
        """Adds the rewards of every token, and the columns of each answer."""
        args, mask, tokens, scores = self.args, rollout.mask, rollout.tokens, scored.scores
        if args.normalize_rewards:
            rollout.moments = moments.updated(self.accelerator.gather(scores))
            scores = rollout.moments.normalize(scores)
        scores = adjusted_scores(scores, rollout.lengths, rollout.finished, args)
        kl = losses.kl_penalty(tokens["old_logprobs"], tokens["ref_logprobs"], args.kl_estimator)
        if not args.kl_in_loss:  # otherwise the loss needs it
            del tokens["ref_logprobs"]
        wanted = scores
        if multiplier is not None and scored.costs is not None:
            wanted = multiplier.combine(scores, scored.costs)
        rewards = losses.token_rewards(kl, wanted, mask, 0.0 if args.kl_in_loss else kl_coef)
        tokens["rewards"] = rewards
        rollout.columns = {
            "objective/scores": scores,
            "objective/kl": kl.sum(dim=1),
            "objective/entropy": -tokens["old_logprobs"].sum(dim=1),
            "objective/non_score_reward": -kl_coef * kl.sum(dim=1),
            "objective/rlhf_reward": rewards.sum(dim=1) - (kl_coef * kl.sum(dim=1) if args.kl_in_loss else 0.0),
            "completions/mean_length": rollout.lengths.float(),
            "val/num_eos_tokens": rollout.finished.float(),
            **scored.columns,
        }

    def _add_advantages(self, rollout: Rollout) -> None:
        """Replaces the rewards of every token of a whole rollout by advantages and returns."""
        args, mask, tokens = self.args, rollout.mask, rollout.tokens
        rewards, values = tokens.pop("rewards"), tokens["old_values"]
        if args.whiten_rewards:
            rewards = losses.masked_whiten(rewards, mask, keep_mean=True)
        tokens["advantages"], tokens["returns"] = losses.gae(rewards, values, mask, gamma=args.gamma, lam=args.lam)
        if args.whiten_advantages:
            tokens["advantages"] = losses.masked_whiten(tokens["advantages"], mask)

    def _whole(self, rollout: Rollout) -> Rollout:
        """Gathers the rollout of all processes, in the order of its prompts."""
        if self.accelerator.num_processes == 1:
            return rollout

        def gathered(values: Tensor, pad_first: bool = False) -> Tensor:
            plain = values.byte() if values.dtype == torch.bool else values
            if plain.dim() > 1:
                plain = pad_across_processes(plain.contiguous(), dim=1, pad_first=pad_first)
            return self.accelerator.gather(plain.contiguous()).to(values.dtype)

        whole = Rollout(
            prompt_ids=gathered(rollout.prompt_ids, pad_first=True),
            prompt_mask=gathered(rollout.prompt_mask, pad_first=True),
            completion_ids=gathered(rollout.completion_ids),
            mask=gathered(rollout.mask),
            finished=gathered(rollout.finished),
            moments=rollout.moments,
            samples=rollout.samples,
        )
        whole.tokens = {name: gathered(values) for name, values in rollout.tokens.items()}
        whole.columns = {name: gathered(values) for name, values in rollout.columns.items()}
        return whole

    def _measure(self, rollout: Rollout, kl_coef: float) -> None:
        """Computes the metrics of a whole rollout."""
        table = torch.stack(list(rollout.columns.values()), dim=1)
        rollout.metrics = dict(zip(rollout.columns, table.nanmean(dim=0).tolist(), strict=True))
        rollout.metrics["val/num_eos_tokens"] *= len(table)
        rollout.metrics["objective/scores_std"] = table[:, 0].std(correction=0).item()
        rollout.metrics["objective/kl_coef"] = kl_coef

    def _samples(self, rollout: Rollout, scored: ScoredRollout) -> list[dict[str, object]]:
        """Returns one row per answer: prompt, completion, score and metrics."""
        columns = {
            "score": rollout.columns["objective/scores"],
            "kl": rollout.columns["objective/kl"],
            "logprob": (rollout.tokens["old_logprobs"] * rollout.mask).sum(dim=1),
            "num_tokens": rollout.lengths,
            "finished": rollout.finished,
            **scored.columns,
        }
        values = {name: _plain(column) for name, column in columns.items()}
        return [
            {"prompt": prompt, "completion": completion, **{name: column[i] for name, column in values.items()}}
            for i, (prompt, completion) in enumerate(zip(scored.prompts, scored.completions, strict=True))
        ]


def _plain(column: Tensor) -> list[object]:
    """Converts a column to JSON values; NaN (not applicable) becomes None."""
    return [None if isinstance(value, float) and math.isnan(value) else value for value in column.tolist()]
