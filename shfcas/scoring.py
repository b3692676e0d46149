"""Rewards for answers: sequence classifiers, cost models, and any callable of TRL's shape.

A scorer is named by a model (see `shfcas.models`), or by `module:function` for a callable
`f(prompts, completions, **columns) -> list[float]`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any, Protocol

import numpy as np
import torch

from shfcas.callables import is_callable_name, load_callable
from shfcas.candidates import CandidateTable
from shfcas.chat import Prompt, completion_message, completion_text, encode_answer
from shfcas.errors import UserError
from shfcas.files import read_json
from shfcas.models import context_length, has_trained_head, is_cost_model, load_reward_model
from shfcas.pairs import accuracy
from shfcas.preferences import Preference
from shfcas.progress import progress

RewardCallable = Callable[..., Sequence[float | None]]  # TRL's: None where it does not apply


class RewardScorer(Protocol):
    """Anything that rewards answers; a TRL reward function is one."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """One reward an answer, higher is better."""


class ModelScorer:
    """Rewards from a sequence-classification model with its own tokenizer and template.

    Every answer is scored in full precision at the head, in batches of similar length, so that its reward
    does not depend on what else is scored.

    Args:
        model: a sequence classifier with one output.
        tokenizer: its tokenizer.
        batch_size: answers a forward pass.
        max_length: tokens of prompt and answer together (None: what the model can see).

    Raises:
        UserError: the model has more than one output, or there is no tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64, max_length: int | None = None) -> None:
        # Trainers name a reward function's metrics after it.
        self.__name__ = Path(model.config._name_or_path).name or type(model).__name__
        if model.config.num_labels != 1:
            raise UserError(
                f"reward model {self.__name__} has {model.config.num_labels} outputs, expected one (num_labels=1)"
            )
        if tokenizer is None:
            raise UserError(f"reward model {self.__name__} needs its tokenizer in reward_processing_classes")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.max_length = max_length or reward_max_length(model, tokenizer)
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        config = model.config.get_text_config()
        if config.pad_token_id is None or not 0 <= config.pad_token_id < config.vocab_size:
            config.pad_token_id = self.pad_id
        self.pad_id = config.pad_token_id  # by which a decoder finds its last token

    def __call__(self, prompts: list[Prompt], completions: list[Any], **columns: Any) -> list[float]:
        """Rewards for prompts (text or messages) and completions (text or messages)."""
        return self.score_tokens(
            [
                encode_answer(self.tokenizer, prompt, completion_text(completion), self.max_length)
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
        )

    @torch.inference_mode()
    def score_tokens(self, encoded: Sequence[list[int]]) -> list[float]:
        """Rewards for conversations that are token ids already."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        rewards = [0.0] * len(encoded)
        training = self.model.training
        self.model.eval()
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs = padded([encoded[i] for i in batch], self.pad_id, self.model.device)
            logits = self.model(**inputs).logits
            for i, reward in zip(batch, logits.float().squeeze(-1).tolist(), strict=True):
                rewards[i] = reward
        self.model.train(training)
        return rewards


def reward_max_length(model: Any, tokenizer: Any) -> int:
    """What a reward model can see: the smaller of its context and its tokenizer's limit."""
    return min(context_length(model), tokenizer.model_max_length)


def padded(rows: Sequence[list[int]], pad: int, device: Any, side: str = "right") -> dict[str, torch.Tensor]:
    """Token ids and attention mask as (B, T) tensors; the mask comes from the lengths, never from the ids."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        left = width - len(row) if side == "left" else 0
        right = width - len(row) - left
        ids.append([pad] * left + row + [pad] * right)
        mask.append([0] * left + [1] * len(row) + [0] * right)
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def load_scorer(name: str, cost_model: bool = False) -> RewardScorer:
    """The scorer of that name.

    Args:
        name: `module:function`, a model name, or the folder of an ensemble.
        cost_model: lower is better (safe-rlhf style): the sign is turned. A model whose configuration says so is
            turned without being told.

    Raises:
        UserError: there is no such scorer, or the model has no trained head.
    """
    if members := ensemble_members(name):
        return EnsembleScorer([load_scorer(member, cost_model) for member in members])
    check_scorer(name)
    if is_callable_name(name):
        scorer = load_callable(name)
        return negated(scorer) if cost_model else scorer
    scorer = ModelScorer(*load_reward_model(name))
    return negated(scorer) if cost_model or is_cost_model(name) else scorer


def check_scorer(name: str) -> None:
    """Looks whether there is a scorer of that name, without loading a model.

    Raises:
        UserError: see `load_scorer`.
    """
    for member in ensemble_members(name) or [name]:
        if is_callable_name(member):
            load_callable(member)
        elif not has_trained_head(member):
            raise UserError(f"{member} has no trained reward head; train one with: shfcas train-reward")


def negated(scorer: RewardScorer) -> RewardScorer:
    """A cost as a reward."""

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return [-cost for cost in scorer(prompts, completions, **columns)]

    return reward


ENSEMBLE_FILE = "ensemble.json"


def ensemble_members(name: str) -> list[str]:
    """The folders of an ensemble's members; none where the name is not the folder of an ensemble."""
    folder = Path(name).expanduser()
    if not (folder / ENSEMBLE_FILE).is_file():
        return []
    return [str(folder / member) for member in read_json(folder / ENSEMBLE_FILE)["members"]]


class EnsembleScorer:
    """The mean reward of several scorers; where they differ, they have not learned what they say.

    Args:
        members: at least two scorers.
    """

    def __init__(self, members: Sequence[RewardScorer]) -> None:
        self.members = members
        self.__name__ = "ensemble"

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """The mean over the members, one an answer."""
        each = [member(prompts=prompts, completions=completions, **columns) for member in self.members]
        return [sum(rewards) / len(rewards) for rewards in zip(*each, strict=True)]


class ReferencedReward:
    """A reward that is compared with the rewards of reference answers to the same prompt.

    Bradley-Terry training says nothing about how rewards compare across prompts, and that arbitrary offset is
    noise to a policy gradient. References, scored once by the same scorer, take it out.

    Args:
        scorer: the reward.
        references: rows with `prompt_id`, `prompt` and `completions`, such as a candidate table's.
    """

    def __init__(self, scorer: RewardScorer, references: Sequence[dict[str, Any]]) -> None:
        self.scorer = scorer
        rewards = score_rows(scorer, references)
        self.references = {row["prompt_id"]: r for row, r in zip(references, rewards, strict=True)}

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """Rewards; the column `prompt_id` says which prompts, and they must be among the references."""
        ids = columns.get("prompt_id", [])
        unknown = set(ids) - self.references.keys()
        if unknown or not ids:
            which = f"prompt {min(unknown)!r}" if unknown else "prompts without a prompt_id"
            raise UserError(f"no reference answers for {which}: sample all training prompts first")
        rewards = self.scorer(prompts=prompts, completions=completions, **columns)
        return [self.compare(r, self.references[p]) for r, p in zip(rewards, ids, strict=True)]

    def compare(self, reward: float, references: list[float]) -> float:
        """What a reward is worth beside those of the reference answers."""
        raise NotImplementedError


class CentredReward(ReferencedReward):
    """A reward less the mean reward of the reference answers (Shen et al. 2024, arXiv 2403.07708).

    What is subtracted depends on the prompt alone, so the optimum stays where it is.
    """

    __name__ = "centred_reward"

    def compare(self, reward: float, references: list[float]) -> float:
        """The reward, less the mean of the references."""
        return reward - sum(references) / len(references)


class PreferenceAsReward(ReferencedReward):
    """The probability that an answer is preferred to a reference answer (PAR; Fu et al. 2025, arXiv 2502.18770).

    It lies in (0, 1) and rises ever more slowly, so that there is little to gain from answers whose reward is
    far above what the references reach, which is where a reward model is exploited. The optimum is another one
    than that of the plain reward.
    """

    __name__ = "preference_as_reward"

    def compare(self, reward: float, references: list[float]) -> float:
        """Mean over m of sigmoid(r - r_m)."""
        return sum(0.5 + 0.5 * math.tanh((reward - r) / 2) for r in references) / len(references)


SHAPINGS: dict[str, type[ReferencedReward]] = {"centre": CentredReward, "par": PreferenceAsReward}


def shaped_reward(scorer: RewardScorer, references: Sequence[dict[str, Any]], shaping: str) -> RewardScorer:
    """The reward that a policy is trained on.

    Args:
        scorer: the reward.
        references: rows with `prompt_id`, `prompt` and `completions`; the prompts trained on are among them.
        shaping: `none` (the scorer itself), `centre` (`CentredReward`) or `par` (`PreferenceAsReward`).

    Raises:
        UserError: there is no such shaping.
    """
    if shaping == "none":
        return scorer
    if shaping not in SHAPINGS:
        raise UserError(f"reward shaping must be one of none, {', '.join(SHAPINGS)}; got {shaping!r}")
    return SHAPINGS[shaping](scorer, references)


def score_rows(scorer: RewardScorer, rows: Sequence[dict[str, Any]], block: int = 32) -> list[list[float]]:
    """Rewards of all answers of all rows, one list a row; further columns reach the scorer as TRL passes them.

    Args:
        scorer: called with `block` prompts' answers at a time.
        rows: dictionaries with `prompt_id`, `prompt`, `completions`.
        block: prompts a call.

    Raises:
        UserError: the scorer returned another number of rewards, or one that is not a number.
    """
    starts = progress(range(0, len(rows), block), "scoring")
    return [row for start in starts for row in score_block(scorer, rows[start : start + block])]


def score_block(scorer: RewardScorer, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """As `score_rows`, of rows that the scorer is given at once."""
    answers = [(row, i) for row in rows for i in range(len(row["completions"]))]
    scalars = [
        name for name, value in rows[0].items() if name not in ("prompt", "completions") and not isinstance(value, list)
    ]
    values = list(
        scorer(
            prompts=[row["prompt"] for row, _ in answers],
            completions=[completion_message(row["prompt"], row["completions"][i]) for row, i in answers],
            **{name: [row[name] for row, _ in answers] for name in scalars},
        )
    )
    if len(values) != len(answers):
        raise UserError(f"the scorer returned {len(values)} rewards for {len(answers)} answers")
    for (row, i), value in zip(answers, values, strict=True):
        if value is None or math.isnan(value):
            raise UserError(
                f"the reward of answer {i} of prompt {row['prompt_id']!r} is not a number "
                f"({row['completions'][i][:60]!r}); nothing was written: mend the scorer and run again"
            )
    flat = iter(float(value) for value in values)
    return [[next(flat) for _ in row["completions"]] for row in rows]


def add_rewards(candidates: CandidateTable, scorer: RewardScorer) -> CandidateTable:
    """Adds `rewards` to a candidate table, and what an ensemble's members say, see `with_rewards`."""
    rows = candidates.rows()
    members = scorer.members if isinstance(scorer, EnsembleScorer) else [scorer]
    return with_rewards(candidates, [score_rows(member, rows) for member in members])


def with_rewards(candidates: CandidateTable, each: Sequence[list[list[float]]]) -> CandidateTable:
    """Adds `rewards` to a candidate table, and of several scorers also `reward_variances` and `member_rewards`.

    The variance is the unbiased one over the members, so that few members do not look as if they agreed. Those
    columns of an earlier scorer are dropped.

    Args:
        candidates: a candidate table.
        each: the rewards that a scorer gives, one list a prompt; or those of each member of an ensemble.
    """
    if len(each) == 1:
        stale = [name for name in ("reward_variances", "member_rewards") if name in candidates]
        plain = CandidateTable(candidates.table.drop_columns(stale), candidates.metadata)
        return plain.with_columns(rewards=each[0])
    answers = [list(zip(*row, strict=True)) for row in zip(*each, strict=True)]
    return candidates.with_columns(
        rewards=[[fmean(rewards) for rewards in row] for row in answers],
        reward_variances=[[variance(rewards) for rewards in row] for row in answers],
        member_rewards=[[list(rewards) for rewards in row] for row in answers],
    )


def pair_rewards(scorer: RewardScorer, preferences: Sequence[Preference]) -> tuple[list[float], list[float]]:
    """Rewards of the chosen and of the rejected answers."""
    prompts = [p.prompt for p in preferences] * 2
    answers = [completion_message(p.prompt, p.chosen) for p in preferences]
    answers += [completion_message(p.prompt, p.rejected) for p in preferences]
    rewards = list(scorer(prompts=prompts, completions=answers))
    return rewards[: len(preferences)], rewards[len(preferences) :]


def pair_accuracy(scorer: RewardScorer, preferences: Sequence[Preference]) -> float:
    """Share of pairs whose chosen answer gets the higher reward; a tie counts half."""
    chosen, rejected = pair_rewards(scorer, preferences)
    return accuracy(np.subtract(chosen, rejected))["mean"]
