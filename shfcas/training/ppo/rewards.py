"""Scores of completions, from callables with TRL's signature and from reward models, given or named."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shfcas.rewards.calls import call_reward, describe_reward
from shfcas.rewards.scorers import ModelScorer, RewardCallable, load_scorer
from shfcas.training.ppo.config import PPOConfig
from shfcas.training.ppo.rollout import Rollout, decode
from shfcas.utils.errors import UserError

RewardFunction = RewardCallable | PreTrainedModel | str
RewardFunctions = RewardFunction | Sequence[RewardFunction]
# Reserved names, which metric_funcs may not use.
OWN_METRICS = {"scores", "scores_std", "kl", "kl_coef", "entropy", "non_score_reward", "rlhf_reward", "mean_length"}
OWN_METRICS |= {"cost", "cost_multiplier"}
Tokenizers = PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None


def reward_callables(
    reward_funcs: RewardFunctions,
    tokenizers: Tokenizers,
    batch_size: int,
    device: torch.device,
) -> dict[str, RewardCallable]:
    """Returns reward functions by name; models are wrapped in `ModelScorer`, names are loaded (see `load_scorer`).

    Raises:
        ValueError: there is no reward function, the list of tokenizers has another length, a named model was given
            a tokenizer, or two functions have the same name.
    """
    funcs: list[Any] = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    of_each: list[Any] = list(tokenizers) if isinstance(tokenizers, (list, tuple)) else [tokenizers] * len(funcs)
    if not funcs or len(of_each) != len(funcs):
        raise ValueError(f"got {len(funcs)} reward_funcs and {len(of_each)} reward_processing_classes")
    named: dict[str, RewardCallable] = {}
    for func, tokenizer in zip(funcs, of_each, strict=True):
        if isinstance(func, PreTrainedModel):
            model: Any = func
            func = ModelScorer(model.to(device).eval(), tokenizer, batch_size)
        elif isinstance(func, str):
            if tokenizer is not None:
                raise ValueError(f"reward model {func}: expected None as its tokenizer, which is loaded with the model")
            func = load_scorer(func)
            if isinstance(func, ModelScorer):
                func.model.to(device)
                func.batch_size = batch_size
        name = getattr(func, "__name__", type(func).__name__)
        if name in named:
            raise ValueError(f"reward_funcs: expected unique names (__name__ or folder), got {name!r} twice")
        named[name] = func
    return named


def evaluate_callable(name: str, func: RewardCallable, count: int, arguments: dict[str, Any]) -> Tensor:
    """Calls a reward function and returns (count,) float32 results; None (not applicable) becomes NaN.

    Raises:
        UserError: the function failed, or its result has the wrong length or contains NaN or an infinity.
    """
    results = call_reward(func, count, arguments)
    for i, value in enumerate(results):
        if value is not None and not math.isfinite(value):
            raise UserError(
                f"reward function {name!r} returned {value} for completion {i}; fix {describe_reward(func)}"
            )
    return torch.tensor([math.nan if value is None else value for value in results], dtype=torch.float32)


def total_scores(per_function: Tensor, weights: Tensor) -> Tensor:
    """Computes the weighted sum over functions (columns) of the rewards that apply to each completion (rows).

    Raises:
        UserError: no function applies to some completion.
    """
    none_applies = per_function.isnan().all(dim=1)
    if none_applies.any():
        raise UserError(f"every reward function returned None for completion {int(none_applies.nonzero()[0])}")
    return (per_function * weights).nansum(dim=1)


def adjusted_scores(scores: Tensor, lengths: Tensor, finished: Tensor, args: PPOConfig) -> Tensor:
    """Clips (N,) scores, then subtracts the penalties for a missing end and for length.

    Penalties are subtracted last, so that clipping does not reduce them.
    """
    if args.reward_clip is not None:
        scores = scores.clamp(-args.reward_clip, args.reward_clip)
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * ~finished
    return scores - args.length_penalty * lengths


class ScoredRollout(NamedTuple):
    """Completions of a rollout with their scores.

    Attributes:
        prompts: prompts as in the dataset.
        completions: text, or one assistant message in a list.
        scores: (N,) weighted sums of the rewards.
        columns: (N,) results of each function: `rewards/<name>`, and metrics as `objective/<name>`.
        costs: (N,) costs, None without any.
    """

    prompts: list[Any]
    completions: list[Any]
    scores: Tensor
    columns: dict[str, Tensor]
    costs: Tensor | None = None


class RolloutScorer:
    """Scorer of the completions of a rollout.

    Args:
        reward_funcs: rewards by name.
        metric_funcs: callables by name whose results are only logged.
        tokenizer: the policy's.
        args: the settings.
        cost_func: the cost, None without one.

    Raises:
        ValueError: the number of weights is not the number of functions, or the name of a metric is reserved.
    """

    def __init__(
        self,
        reward_funcs: dict[str, RewardCallable],
        metric_funcs: dict[str, RewardCallable],
        tokenizer: PreTrainedTokenizerBase,
        args: PPOConfig,
        cost_func: RewardCallable | None = None,
    ) -> None:
        self.cost_func = cost_func
        self.reward_funcs, self.metric_funcs = reward_funcs, metric_funcs
        self.tokenizer, self.args = tokenizer, args
        weights = args.reward_weights or [1.0] * len(reward_funcs)
        if len(weights) != len(reward_funcs):
            raise ValueError(
                f"reward_weights: expected one per reward function, {len(reward_funcs)}, got {len(weights)}"
            )
        self.weights = torch.tensor(weights)
        if taken := OWN_METRICS & metric_funcs.keys():
            raise ValueError(f"metric_funcs: {min(taken)!r} is the name of a metric of PPO; rename it")

    def __call__(self, dataset: Dataset, rows: list[int], rollout: Rollout) -> ScoredRollout:
        """Scores the answers to these rows of the dataset; other columns are passed to the callables."""
        columns = dataset[rows]
        prompts, completion_ids = columns["prompt"], rollout.completion_lists()
        completions = decode(self.tokenizer, prompts, completion_ids, rollout.finished.tolist())
        reserved = ("prompt", "completion", "completion_ids")
        arguments = {
            **{name: values for name, values in columns.items() if name not in reserved},
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
        }

        def evaluate(funcs: dict[str, RewardCallable]) -> dict[str, Tensor]:
            return {name: evaluate_callable(name, func, len(rows), arguments) for name, func in funcs.items()}

        rewards, metrics = evaluate(self.reward_funcs), evaluate(self.metric_funcs)
        scores = total_scores(torch.stack(list(rewards.values()), dim=1), self.weights)
        logged = {f"objective/{name}": values for name, values in metrics.items()}
        logged |= {f"rewards/{name}": values for name, values in rewards.items()}
        costs = None if self.cost_func is None else evaluate({"cost": self.cost_func})["cost"]
        if costs is not None:
            if costs.isnan().any():
                raise UserError(f"the cost function returned None for completion {int(costs.isnan().nonzero()[0])}")
            logged["objective/cost"] = costs
        logged = {name: values.to(self.args.device) for name, values in logged.items()}
        return ScoredRollout(prompts, completions, scores.to(self.args.device), logged, logged.get("objective/cost"))
