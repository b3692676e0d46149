"""Reward scorers: sequence classifiers, cost models, and callables with TRL's signature.

The name of a scorer is a model name (see `shfcas.models.loading`), or `module:function` for a callable
`f(prompts, completions, **columns) -> list[float]`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from shfcas.data.chat import encode_answer
from shfcas.data.messages import Prompt, completion_text
from shfcas.models.loading import context_length, has_trained_head, load_reward_model
from shfcas.models.resolve import is_cost_model
from shfcas.utils.callables import is_callable_name, load_callable
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_json

RewardCallable = Callable[..., Sequence[float | None]]  # TRL's type: None if the reward does not apply


class RewardScorer(Protocol):
    """Protocol of scorers; a TRL reward function is one."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """Returns one reward per answer, higher is better."""


class ModelScorer:
    """Scorer that uses a sequence classifier with its own tokenizer and template.

    The head computes in full precision, and batches have similar lengths. So the reward of an answer does not depend
    on the other answers.

    Args:
        model: a sequence classifier with one output.
        tokenizer: its tokenizer.
        batch_size: answers per forward pass.
        max_length: maximum tokens of prompt and answer together (None: the limit of the model).

    Raises:
        UserError: the model has more than one output, or the tokenizer is missing.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64, max_length: int | None = None) -> None:
        # Trainers use this name for the metrics of a reward function.
        self.__name__ = Path(model.config._name_or_path).name or type(model).__name__
        if model.config.num_labels != 1:
            raise UserError(
                f"reward model {self.__name__}: expected one output (num_labels=1), got {model.config.num_labels}"
            )
        if tokenizer is None:
            raise UserError(f"reward model {self.__name__} needs its tokenizer in reward_processing_classes")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.max_length = max_length or reward_max_length(model, tokenizer)
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        config = model.config.get_text_config()
        if config.pad_token_id is None or not 0 <= config.pad_token_id < config.vocab_size:
            config.pad_token_id = self.pad_id
        self.pad_id = config.pad_token_id  # a decoder uses it to find the last token

    def __call__(self, prompts: list[Prompt], completions: list[Any], **columns: Any) -> list[float]:
        """Returns the rewards of completions (text or messages) to prompts (text or messages)."""
        return self.score_tokens(
            [
                encode_answer(self.tokenizer, prompt, completion_text(completion), self.max_length)
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
        )

    @torch.inference_mode()
    def score_tokens(self, encoded: Sequence[list[int]]) -> list[float]:
        """Returns the rewards of conversations given as token ids."""
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
    """Returns the maximum input length of a reward model: the smaller of its context and its tokenizer's limit."""
    return min(context_length(model), tokenizer.model_max_length)


def padded(rows: Sequence[list[int]], pad: int, device: Any, side: str = "right") -> dict[str, torch.Tensor]:
    """Returns token ids and attention mask as (B, T) tensors; the mask comes from the lengths, never from the ids."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        left = width - len(row) if side == "left" else 0
        right = width - len(row) - left
        ids.append([pad] * left + row + [pad] * right)
        mask.append([0] * left + [1] * len(row) + [0] * right)
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def load_scorer(name: str, cost_model: bool = False) -> RewardScorer:
    """Loads a scorer by name.

    Args:
        name: `module:function`, a model name, or the folder of an ensemble.
        cost_model: lower is better (safe-rlhf style), so the sign is flipped. Models with a cost configuration are
            flipped automatically.

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
    """Checks that a scorer with this name exists, without loading a model.

    Raises:
        UserError: see `load_scorer`.
    """
    for member in ensemble_members(name) or [name]:
        if is_callable_name(member):
            load_callable(member)
        elif not has_trained_head(member):
            raise UserError(f"{member} has no trained reward head; train one with: shfcas train-reward")


def negated(scorer: RewardScorer) -> RewardScorer:
    """Returns a scorer with the opposite sign, which turns a cost into a reward."""

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return [-cost for cost in scorer(prompts, completions, **columns)]

    return reward


ENSEMBLE_FILE = "ensemble.json"


def ensemble_members(name: str) -> list[str]:
    """Returns the folders of an ensemble's members; empty if the name is not the folder of an ensemble."""
    folder = Path(name).expanduser()
    if not (folder / ENSEMBLE_FILE).is_file():
        return []
    return [str(folder / member) for member in read_json(folder / ENSEMBLE_FILE)["members"]]


class EnsembleScorer:
    """Mean reward of several scorers; their disagreement shows where they have not learned enough.

    Args:
        members: at least two scorers.
    """

    def __init__(self, members: Sequence[RewardScorer]) -> None:
        self.members = members
        self.__name__ = "ensemble"

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """Returns the mean over the members, one per answer."""
        each = [member(prompts=prompts, completions=completions, **columns) for member in self.members]
        return [sum(rewards) / len(rewards) for rewards in zip(*each, strict=True)]
