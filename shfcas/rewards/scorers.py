"""Reward scorers: sequence classifiers, cost models, and callables with TRL's signature.

The name of a scorer is a model name (see `shfcas.models.loading`), or `module:function` for a callable
`f(prompts, completions, **columns) -> list[float]`.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch

from shfcas.data.chat import NO_LIMIT, ModelInputs, TooLong, model_inputs
from shfcas.data.messages import Completion, Prompt, plain_completion
from shfcas.models.loading import context_length, has_trained_head, load_reward_model
from shfcas.models.resolve import is_cost_model
from shfcas.rewards.calls import call_reward
from shfcas.utils.callables import is_callable_name, load_callable
from shfcas.utils.errors import UserError
from shfcas.utils.files import read_object

logger = logging.getLogger(__name__)

TOO_LONG = {  # what happens to an answer that is longer, with its prompt, than the reward model's limit
    "cut": "the beginning of the prompt is cut",
    "floor": "they get the lowest reward of the others",
    "error": "an error",
}

TOO_LONG_HELP = (
    "an answer that exceeds the reward model's limit with its prompt: cut the beginning of the prompt, floor (give it "
    "the lowest reward), or error"
)

WIDTHS = 64  # passes of fixed shape have a multiple of this many tokens

RewardCallable = Callable[..., Sequence[float | None]]  # TRL's type: None if the reward does not apply
# Positions of conversations, inputs of the model, and scores, (B,).
Batch = tuple[list[list[int]], dict[str, torch.Tensor], torch.Tensor]


class RewardScorer(Protocol):
    """Protocol of scorers; a TRL reward function is one."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Sequence[float | None]:
        """Returns one reward per answer, higher is better; None if the reward does not apply to the answer."""


class ModelScorer:
    """Scorer that uses a sequence classifier with its own tokenizer and template.

    The head computes in full precision, and batches have similar lengths. So the reward of an answer does not depend
    on the other answers. Equal inputs are read once and have one reward.

    Args:
        model: a sequence classifier with one output.
        tokenizer: its tokenizer.
        batch_size: answers per forward pass.
        max_length: maximum tokens of prompt and answer together (None: the limit of the model).
        too_long: what to do with a longer answer, see `TOO_LONG`.

    Attributes:
        fixed_shapes: every forward pass has `batch_size` rows, and a length out of a few unless there is only one row.
            Then all bits of a reward are the same whatever else is scored, if the kernels treat all rows alike.

    Raises:
        UserError: the model has more than one output, or the tokenizer is missing.
    """

    def __init__(
        self, model: Any, tokenizer: Any, batch_size: int = 64, max_length: int | None = None, too_long: str = "cut"
    ) -> None:
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
        self.too_long, self.too_long_count = too_long, 0
        self.fixed_shapes = False
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        config = model.config.get_text_config()
        if config.pad_token_id is None or not 0 <= config.pad_token_id < config.vocab_size:
            config.pad_token_id = self.pad_id
        self.pad_id = config.pad_token_id  # a decoder uses it to find the last token

    def __call__(self, prompts: list[Prompt], completions: list[Any], **columns: Any) -> list[float]:
        """Returns the rewards of completions (text or messages) to prompts (text or messages)."""
        encoded = [
            self._encode(prompt, plain_completion(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        rewards = iter(self.score_inputs([inputs for inputs in encoded if inputs is not None]))
        found = [None if inputs is None else next(rewards) for inputs in encoded]
        known = [reward for reward in found if reward is not None]
        if found and not known:
            raise UserError(
                f"all {len(found)} answers are longer than the {self.max_length} tokens of reward model "
                f"{self.__name__}, so too_long: floor has no lowest reward; set it to cut, or sample shorter answers"
            )
        return [min(known) if reward is None else reward for reward in found]

    def _encode(self, prompt: Prompt, completion: Completion) -> ModelInputs | None:
        """Returns the inputs of the model for an answer; None if it is too long and gets the lowest reward."""
        try:
            return model_inputs(self.tokenizer, prompt, completion, self.max_length)
        except TooLong:
            if self.too_long == "error":
                raise
        self.too_long_count += 1
        if self.too_long_count & (self.too_long_count - 1) == 0:  # the first, and whenever the count has doubled
            logger.warning(
                "reward model %s: %d answers so far are longer than its limit of %d tokens with their prompt; %s",
                self.__name__,
                self.too_long_count,
                self.max_length,
                TOO_LONG[self.too_long],
            )
        if self.too_long == "floor":
            return None
        return model_inputs(self.tokenizer, prompt, completion, self.max_length, cut=True)

    def score_inputs(self, encoded: Sequence[ModelInputs]) -> list[float]:
        """Returns the rewards of conversations given as the inputs of the model."""
        rewards = [0.0] * len(encoded)
        for batch, _, scores in self.batches(encoded):
            for same, reward in zip(batch, scores.tolist(), strict=True):
                for i in same:
                    rewards[i] = reward
        return rewards

    @torch.inference_mode()
    def batches(self, encoded: Sequence[ModelInputs]) -> Iterator[Batch]:
        """Scores conversations given as the inputs of the model, in batches of similar length; equal ones once."""
        names = accepted_inputs(self.model, encoded)
        places: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for i, inputs in enumerate(encoded):
            places.setdefault(tuple(tuple(inputs[name]) for name in names), []).append(i)
        order = sorted(places.values(), key=lambda same: len(encoded[same[0]]["input_ids"]))
        training = self.model.training
        self.model.eval()
        groups = groupby(order, lambda same: self._width(encoded[same[0]]))
        for width, group in [(width, list(same)) for width, same in groups]:
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                rows = [encoded[same[0]] for same in batch]
                if self.fixed_shapes:
                    rows += rows[:1] * (self.batch_size - len(rows))
                tensors = padded_inputs(rows, names, self.pad_id, self.model.device, width=width)
                yield batch, tensors, self.model(**tensors).logits.float().squeeze(-1)[: len(batch)]
        self.model.train(training)

    def _width(self, inputs: ModelInputs) -> int:
        """Returns the length to pad to; 0 is that of the longest in the batch."""
        if not self.fixed_shapes or self.batch_size == 1:
            return 0
        return min(-(-len(inputs["input_ids"]) // WIDTHS) * WIDTHS, self.max_length)


def accepted_inputs(model: Any, encoded: Sequence[ModelInputs]) -> list[str]:
    """Returns the names of the inputs, of those that a tokenizer made, which a model takes."""
    parameters = inspect.signature(model.forward).parameters
    names = [name for name in (encoded[0] if encoded else ()) if name == "input_ids" or name in parameters]
    types = getattr(model.config, "type_vocab_size", NO_LIMIT)  # BERT has 2, RoBERTa 1
    if "token_type_ids" in names and any(max(inputs["token_type_ids"]) >= types for inputs in encoded):
        names.remove("token_type_ids")
    return names


def padded_inputs(
    encoded: Sequence[ModelInputs], names: Sequence[str], pad: int, device: Any, side: str = "right", *, width: int = 0
) -> dict[str, torch.Tensor]:
    """Returns the named inputs and the attention mask as (B, T) tensors; token types are padded with 0."""

    def tensors(name: str, fill: int) -> dict[str, torch.Tensor]:
        return padded([row[name] for row in encoded], fill, device, side, width=width)

    others = (name for name in names if name != "input_ids")
    return tensors("input_ids", pad) | {name: tensors(name, 0)["input_ids"] for name in others}


def reward_max_length(model: Any, tokenizer: Any) -> int:
    """Returns the maximum input length of a reward model: the smaller of its context and its tokenizer's limit."""
    return min(context_length(model), tokenizer.model_max_length)


def padded(
    rows: Sequence[list[int]], pad: int, device: Any, side: str = "right", *, width: int = 0
) -> dict[str, torch.Tensor]:
    """Returns token ids and attention mask as (B, T) tensors; the mask comes from the lengths, never from the ids.

    T is the greatest length, and at least `width`.
    """
    width = max(width, *map(len, rows))
    ids, mask = [], []
    for row in rows:
        left = width - len(row) if side == "left" else 0
        right = width - len(row) - left
        ids.append([pad] * left + row + [pad] * right)
        mask.append([0] * left + [1] * len(row) + [0] * right)
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def load_scorer(name: str, cost_model: bool = False, too_long: str = "cut") -> RewardScorer:
    """Loads a scorer by name.

    Args:
        name: `module:function`, a model name, or the folder of an ensemble.
        cost_model: lower is better (safe-rlhf style), so the sign is flipped. Models with a cost configuration are
            flipped automatically.
        too_long: what a model does with an answer beyond its limit, see `TOO_LONG`.

    Raises:
        UserError: there is no such scorer, or the model has no trained head.
    """
    if members := ensemble_members(name):
        return EnsembleScorer([load_scorer(member, cost_model, too_long) for member in members])
    check_scorer(name)
    if is_callable_name(name):
        scorer = load_callable(name)
        return negated(scorer) if cost_model else scorer
    scorer = ModelScorer(*load_reward_model(name), too_long=too_long)
    return negated(scorer) if cost_model or is_cost_model(name) else scorer


def load_cost(name: str, too_long: str = "cut") -> RewardScorer:
    """Loads a scorer by name as a cost: higher is worse, and a cost model or function counts as it is.

    Raises:
        UserError: see `load_scorer`.
    """
    return negated(load_scorer(name, cost_model=True, too_long=too_long))


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
    """Returns a scorer with the opposite sign, which turns a cost into a reward; None stays None."""

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        costs = call_reward(scorer, len(completions), {"prompts": prompts, "completions": completions, **columns})
        return [None if cost is None else -cost for cost in costs]

    reward.scorer = scorer  # type: ignore[attr-defined]  # named in errors
    return reward


ENSEMBLE_FILE = "ensemble.json"


def ensemble_members(name: str) -> list[str]:
    """Returns the folders of an ensemble's members; empty if the name is not the folder of an ensemble.

    Raises:
        UserError: the folder's ensemble.json does not name folders inside it.
    """
    folder = Path(name).expanduser()
    file = folder / ENSEMBLE_FILE
    if not file.is_file():
        return []
    members = read_object(file).get("members")
    if not isinstance(members, list) or not members or not all(isinstance(member, str) for member in members):
        raise UserError(f"{file}: expected members, a list of folders; restore the file")
    if any((folder / member / ENSEMBLE_FILE).exists() for member in members):
        raise UserError(f"{file}: expected members that are models, got an ensemble; restore the file")
    return [str(folder / member) for member in members]


class EnsembleScorer:
    """Mean reward of several scorers; their disagreement shows where they have not learned enough.

    Args:
        members: at least two scorers.
    """

    def __init__(self, members: Sequence[RewardScorer]) -> None:
        self.members = members
        self.__name__ = "ensemble"

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        """Returns the mean over the members, one per answer; None if a member does not apply to the answer."""
        arguments = {"prompts": prompts, "completions": completions, **columns}
        each = [call_reward(member, len(completions), arguments) for member in self.members]
        return [None if None in rewards else sum(rewards) / len(rewards) for rewards in zip(*each, strict=True)]
