"""Scores for completions, from callables of TRL's shape and from sequence-classification models."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shfcas.scoring import ModelScorer, RewardCallable
from shfcas.training.ppo_config import PPOConfig
from shfcas.training.rollouts import Rollout, decode

RewardFunctions = RewardCallable | PreTrainedModel | Sequence[RewardCallable | PreTrainedModel]
Tokenizers = PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None


def reward_callables(
    reward_funcs: RewardFunctions,
    tokenizers: Tokenizers,
    batch_size: int,
    device: torch.device,
) -> dict[str, RewardCallable]:
    """Reward functions by name, with models wrapped in `ModelScorer`.

    Raises:
        ValueError: no reward function, a tokenizer list of another length, or two functions of one name.
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
        name = getattr(func, "__name__", type(func).__name__)
        if name in named:
            raise ValueError(f"two reward functions are named {name!r}; give them different __name__s")
        named[name] = func
    return named


def evaluate_callable(name: str, func: RewardCallable, count: int, arguments: dict[str, Any]) -> Tensor:
    """(count,) float32 results of a callable; None, which means not applicable, becomes NaN.

    Raises:
        ValueError: the result has another length, or holds NaN or an infinity.
    """
    results = list(func(**arguments))
    if len(results) != count:
        raise ValueError(f"reward function {name!r} returned {len(results)} values for {count} completions")
    for i, value in enumerate(results):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"reward function {name!r} returned {float(value)} for completion {i}")
    return torch.tensor([math.nan if value is None else float(value) for value in results], dtype=torch.float32)


def total_scores(per_function: Tensor) -> Tensor:
    """Sum over functions (columns) of the rewards that apply to each completion (rows).

    Raises:
        ValueError: no function applies to some completion.
    """
    none_applies = per_function.isnan().all(dim=1)
    if none_applies.any():
        raise ValueError(f"every reward function returned None for completion {int(none_applies.nonzero()[0])}")
    return per_function.nansum(dim=1)


class RolloutScorer:
    """Scores the completions of a rollout.

    Args:
        reward_funcs: rewards by name, summed.
        metric_funcs: callables by name whose results are only logged.
        dataset: rows that the prompts come from; their other columns go to the callables.
        tokenizer: the policy's.
        args: the settings.
    """

    def __init__(
        self,
        reward_funcs: dict[str, RewardCallable],
        metric_funcs: dict[str, RewardCallable],
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        args: PPOConfig,
    ) -> None:
        self.reward_funcs, self.metric_funcs = reward_funcs, metric_funcs
        self.dataset, self.tokenizer, self.args = dataset, tokenizer, args

    def __call__(self, rows: list[int], rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """The (N,) scores after clipping and EOS penalty, and (N,) columns to log by name."""
        args, columns = self.args, self.dataset[rows]
        prompts, completion_ids = columns["prompt"], rollout.completion_lists()
        reserved = ("prompt", "completion", "completion_ids")
        arguments = {
            **{name: values for name, values in columns.items() if name not in reserved},
            "prompts": prompts,
            "completions": decode(self.tokenizer, prompts, completion_ids),
            "completion_ids": completion_ids,
        }

        def evaluate(funcs: dict[str, RewardCallable]) -> dict[str, Tensor]:
            return {name: evaluate_callable(name, func, len(rows), arguments) for name, func in funcs.items()}

        rewards, metrics = evaluate(self.reward_funcs), evaluate(self.metric_funcs)
        scores = total_scores(torch.stack(list(rewards.values()), dim=1))
        if args.reward_clip is not None:
            scores = scores.clamp(-args.reward_clip, args.reward_clip)
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * ~rollout.finished.cpu()
        logged = {f"objective/{name}": values for name, values in metrics.items()}
        if len(rewards) > 1:
            logged |= {f"rewards/{name}": values for name, values in rewards.items()}
        return scores.to(args.device), {name: values.to(args.device) for name, values in logged.items()}
