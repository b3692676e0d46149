"""Rewards of requests: one model, an ensemble with a lower bound, or a weighted mixture, each with shaping."""

import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Any

from shfcas.data.messages import Completion, Prompt, plain_text, prompt_key
from shfcas.rewards.calls import call_reward, describe_reward
from shfcas.rewards.scorers import EnsembleScorer, ModelScorer, RewardScorer, load_scorer
from shfcas.rewards.shaping import SHAPINGS
from shfcas.rewards.table import score_rows
from shfcas.utils.config import unexpected
from shfcas.utils.errors import UserError

CONCURRENT = 32  # requests for which a coroutine function runs at the same time


@dataclass(frozen=True)
class Answers:
    """Answers of one request.

    Attributes:
        prompts: text or messages, one per answer.
        completions: text or messages.
        columns: further arguments of reward functions, by name, each with one value per answer.
    """

    prompts: list[Prompt]
    completions: list[Completion]
    columns: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rewards:
    """Rewards of one request.

    Attributes:
        rewards: one per answer, finite; None if a reward function does not apply to the answer.
        variances: unbiased variance over the members of an ensemble; None without one.
    """

    rewards: list[float | None]
    variances: list[float | None] | None = None


class ServedReward:
    """Reward of requests, which depends on no other request.

    Models score the answers of all requests together. With `batch_size` 1, each answer has a forward pass of its own,
    without padding. Otherwise all passes have `batch_size` rows and a length out of a few, so that the kernels of every
    pass are the same. Reward functions are called once per request, because they may compare the answers of a call.

    Args:
        names: models, folders of ensembles, or `module:function`; see `load_scorer`. Several are one ensemble.
        weights: one per name, which makes the names a mixture: the weighted sum of their rewards.
        pessimism: standard deviations of the ensemble to subtract from its mean.
        cost_model: lower is better.
        too_long: what a model does with an answer beyond its limit: `cut` or `error`.
        batch_size: rows of a forward pass.
        shaping: `none`, `centre` or `par`, see `shfcas.rewards.shaping`.
        references: rows with `prompt` and `completions`, whose rewards the shaping compares with.

    Raises:
        UserError: there is no such model, or the settings contradict each other.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        weights: Sequence[float] = (),
        pessimism: float = 0.0,
        cost_model: bool = False,
        too_long: str = "cut",
        batch_size: int = 1,
        shaping: str = "none",
        references: Sequence[dict[str, Any]] = (),
    ) -> None:
        if weights and len(weights) != len(names):
            raise unexpected("weights", f"one for each of {len(names)} models", list(weights))
        if shaping != "none" and not references:
            raise UserError(f"references: {shaping} compares with reference answers; name a candidate table")
        loaded = [load_scorer(name, cost_model, too_long) for name in names]
        groups = [list(s.members) if isinstance(s, EnsembleScorer) else [s] for s in loaded]
        if not weights:
            groups = [[member for group in groups for member in group]]
        if pessimism and all(len(group) == 1 for group in groups):
            raise unexpected("pessimism", "0 without an ensemble", pessimism, "one model does not disagree with itself")
        self.scorers = [member for group in groups for member in group]
        self.sizes, self.weights, self.pessimism = [len(group) for group in groups], list(weights), pessimism
        self.models = [model for scorer in self.scorers if (model := _model(scorer)) is not None]
        for model in self.models:
            model.batch_size, model.fixed_shapes = batch_size, True
        self._threads = ThreadPoolExecutor(CONCURRENT, thread_name_prefix="reward")
        self._compare: Callable[[float, list[float]], float] | None = None
        if shaping != "none":
            self._references = self._score_references(references)
            self._compare = SHAPINGS[shaping].compare

    def __call__(self, requests: Sequence[Answers]) -> list[Rewards | UserError]:
        """Returns the rewards of each request, or its error, which concerns no other request."""
        errors = {i: error for i, request in enumerate(requests) if (error := self._unknown_prompt(request))}
        found: list[list[list[float | None]]] = [[] for _ in requests]  # of each scorer
        for scorer in self.scorers:
            left = [i for i in range(len(requests)) if i not in errors]
            results = _score(scorer, [requests[i] for i in left], self._threads)
            for i, result in zip(left, results, strict=True):
                if isinstance(result, UserError):
                    errors[i] = result
                else:
                    found[i].append(result)
        return [errors.get(i) or self._combined(request, found[i]) for i, request in enumerate(requests)]

    def _combined(self, request: Answers, each: list[list[float | None]]) -> Rewards:
        """Returns the rewards of a request, given those of each scorer."""
        answers = list(zip(*each, strict=True))
        rewards = [self._reward(list(scores)) for scores in answers]
        if self._compare is not None:
            keys = map(prompt_key, request.prompts)
            rewards = [
                None if reward is None else self._compare(reward, self._references[key])
                for reward, key in zip(rewards, keys, strict=True)
            ]
        if len(self.sizes) > 1 or self.sizes == [1]:
            return Rewards(rewards)
        return Rewards(rewards, [None if None in scores else variance(scores) for scores in answers])

    def _reward(self, scores: list[float | None]) -> float | None:
        """Returns the reward of an answer, given that of each scorer."""
        values, start = [], 0
        for size in self.sizes:
            members = [score for score in scores[start : start + size] if score is not None]
            if len(members) < size:
                return None
            value = fmean(members) if size > 1 else members[0]
            values.append(
                value - self.pessimism * math.sqrt(variance(members)) if self.pessimism and size > 1 else value
            )
            start += size
        return sum(w * value for w, value in zip(self.weights, values, strict=True)) if self.weights else values[0]

    def _score_references(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
        def plain(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
            (result,) = self([Answers(prompts, completions, columns)])
            if isinstance(result, UserError):
                raise result
            return result.rewards

        return {prompt_key(row["prompt"]): r for row, r in zip(rows, score_rows(plain, rows), strict=True)}

    def _unknown_prompt(self, request: Answers) -> UserError | None:
        if self._compare is not None:
            for prompt in request.prompts:
                if prompt_key(prompt) not in self._references:
                    shown = plain_text(prompt)[:60]
                    return UserError(f"no reference answers for the prompt {shown!r}; add it to the references")
        return None


def _model(scorer: Any) -> ModelScorer | None:
    """Returns the model behind a scorer; None for a reward function."""
    while hasattr(scorer, "scorer"):  # negated
        scorer = scorer.scorer
    return scorer if isinstance(scorer, ModelScorer) else None


def _score(
    scorer: RewardScorer, requests: Sequence[Answers], threads: ThreadPoolExecutor
) -> list[list[float | None] | UserError]:
    """Returns the rewards of each request, or its error."""
    if _model(scorer) is None:
        if inspect.iscoroutinefunction(scorer):
            return list(threads.map(lambda request: _attempt(scorer, request), requests))
        return [_attempt(scorer, request) for request in requests]
    together = Answers([p for r in requests for p in r.prompts], [c for r in requests for c in r.completions])
    rewards = _attempt(scorer, together)
    if isinstance(rewards, UserError):  # of one request, so the others are scored without it
        return [rewards] if len(requests) == 1 else [_attempt(scorer, request) for request in requests]
    flat = iter(rewards)
    return [[next(flat) for _ in request.completions] for request in requests]


def _attempt(scorer: Callable[..., Any], answers: Answers) -> list[float | None] | UserError:
    arguments = {"prompts": answers.prompts, "completions": answers.completions, **answers.columns}
    try:
        rewards = call_reward(scorer, len(answers.completions), arguments) if answers.completions else []
    except Exception as error:  # of any kind: it fails this request, not the server
        return error if isinstance(error, UserError) else UserError(f"{describe_reward(scorer)} failed: {error}")
    for i, reward in enumerate(rewards):
        if reward is not None and not math.isfinite(reward):
            return UserError(f"{describe_reward(scorer)}: expected a finite reward for answer {i}, got {reward}")
    return rewards
